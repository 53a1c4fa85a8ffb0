"""Public data sets by name, from TFDS and `jvae.data.hub_sets`.

TFDS sets are read and, where TFDS supports it, prepared without TensorFlow.

tfds:snli:train                    a set and a split
tfds:glue/sst2:train[:10%]         a configuration and a part of a split, in TFDS notation
tfds:/data/snli/1.1.0:validation   a folder that TFDS has prepared
"""

import contextlib
import hashlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import DatasetNotFoundError

from jvae.data import hub_sets
from jvae.data.sources import HUB
from jvae.errors import DataError

# TFDS finds these sets only after their module has been imported.
_MODULES = ("text", "translate", "question_answering", "summarization", "datasets")
_BLOCK = 512


def rows(name: str, data_dir: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields (index from 1, features) of each example: text, numbers, and names of class labels.

    Raises: DataError if the set cannot be opened or prepared.
    """
    if name.startswith(HUB):
        return hub_sets.rows(name)
    return _tfds_rows(name, data_dir)


def _tfds_rows(name: str, data_dir: str) -> Iterator[tuple[int, dict[str, object]]]:
    builder, split = _open(name, data_dir)
    source = _source(name, builder, split)
    labels = {
        key: feature.names
        for key, feature in builder.info.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    for first in range(0, len(source), _BLOCK):
        ids = list(range(first, min(first + _BLOCK, len(source))))
        for i, features in zip(ids, source.__getitems__(ids), strict=True):
            yield i + 1, {key: _plain(value, labels.get(key)) for key, value in features.items()}


def fingerprint(name: str, data_dir: str) -> str:
    """SHA-256 over a TFDS split's name, features and prepared files, or over a hub set's rows."""
    if name.startswith(HUB):
        return hub_sets.fingerprint(name)
    builder, split = _open(name, data_dir)
    _source(name, builder, split)
    digest = hashlib.sha256(f"{split} {builder.info.features.to_json()}".encode())
    for path in builder.info.splits[split.partition("[")[0]].filepaths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _plain(value: Any, names: list[str] | None) -> object:
    """A feature as a JSON value; an unset class label is an empty string."""
    if names is not None:
        return names[int(value)] if 0 <= int(value) < len(names) else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item, None) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _open(name: str, data_dir: str) -> tuple[Any, str]:
    spelt = re.fullmatch(r"tfds:(.+?):([^:\[]+(?:\[.*\])?)", name)
    if not spelt:
        raise DataError(f"{name}: expected tfds:NAME:SPLIT, for example tfds:snli:train")
    where, split = spelt.groups()
    if (Path(where).expanduser() / "dataset_info.json").is_file():
        return tfds.builder_from_directory(Path(where).expanduser()), split
    if where.startswith(("/", ".", "~")):
        raise DataError(
            f"{name}: no prepared TFDS set in {where}; expected a folder with dataset_info.json"
        )
    for module in _MODULES:  # importing registers the set
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{module}.{where.split('/')[0]}")
    try:
        builder = tfds.builder(where, data_dir=data_dir or None)
    except DatasetNotFoundError:
        raise DataError(
            f"{name}: TFDS {tfds.__version__} has no set {where.split('/')[0]!r} and none is "
            f"prepared in {data_dir or 'its default folder'}; check the name and data.tfds_dir"
        ) from None
    except (ImportError, ValueError, OSError) as error:
        raise _failure(name, error) from error
    if not builder.data_path.exists():
        try:
            builder = tfds.builder(where, data_dir=data_dir or None, file_format="array_record")
            builder.download_and_prepare()
        except Exception as error:  # errors of the builder's own code, a download or the disk
            raise _failure(name, error) from error
    return builder, split


def _source(name: str, builder: Any, split: str) -> Any:
    if split.partition("[")[0] not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"{name}: no split {split.partition('[')[0]!r}; the set has {splits}")
    try:
        return builder.as_data_source(split)
    except NotImplementedError:
        raise DataError(
            f"{name}: prepared in {builder.data_path} as {builder.info.file_format.value}, which "
            "needs TensorFlow to read; prepare it again with file_format='array_record'"
        ) from None
    except Exception as error:  # a bad slice, or damaged files
        raise _failure(name, error) from error


def _failure(name: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ImportError) and "tensorflow" in str(chain):
            return DataError(
                f"{name}: TFDS needs TensorFlow to prepare this set. Prepare it where "
                "TensorFlow is installed, with file_format='array_record', and name that folder: "
                "tfds:/path/to/NAME/VERSION:SPLIT"
            )
        chain = chain.__cause__ or chain.__context__
    return DataError(f"{name}: TFDS cannot open or prepare it ({reason})")
