"""Data sets of the Hugging Face hub, read with its package `datasets`.

hf:stanfordnlp/snli:train          a set and a split
hf:nyu-mll/glue:sst2:train[:10%]   a configuration of a set, and a part of a split
hf:/data/mine:train                a folder that `datasets` reads
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from jvae import extras
from jvae.errors import DataError

_NAME = re.compile(r"hf:([^:]+)(?::([^:\[\]]+))?:([^:\[]+(?:\[.*\])?)")


def rows(name: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields (index from 1, features) of each example; class labels are names.

    Raises: DataError if the set cannot be opened.
    """
    data = _open(name)
    labels = {
        key: feature.names
        for key, feature in data.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    for place, row in enumerate(data, 1):
        for key, names in labels.items():  # an unset label is -1 or None, and empty here
            value = row[key]
            row[key] = "" if value is None or value < 0 else names[value]
        yield place, row


def fingerprint(name: str) -> str:
    """SHA-256 over all rows, in order."""
    digest = hashlib.sha256()
    for _, row in rows(name):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _open(name: str) -> Any:
    spelt = _NAME.fullmatch(name)
    if not spelt:
        raise DataError(
            f"{name}: expected hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT, for example "
            "hf:stanfordnlp/snli:train"
        )
    if message := extras.missing("datasets", name):
        raise DataError(message)
    import datasets  # pyright: ignore[reportMissingImports]

    where, configuration, split = spelt.groups()
    try:
        return datasets.load_dataset(where, configuration, split=split)
    except Exception as error:  # failed download, unreadable file or wrong name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name}: cannot be opened ({reason})") from None
