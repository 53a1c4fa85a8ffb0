"""Public data sets by name: those of TFDS, read and prepared without TensorFlow where TFDS can, and
those of `jvae.data.hub_sets`.

tfds:snli:train                    a set and a split; a configuration and a part of a split are
tfds:glue/sst2:train[:10%]         written as TFDS writes them
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

# TFDS finds these only once their module is imported.
_MODULES = ("text", "translate", "question_answering", "summarization", "datasets")
_BLOCK = 512


def rows(name: str, data_dir: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (place from 1, features) of each example: text, numbers, and names for class labels.

    Raises: DataError where the set cannot be opened or prepared here.
    """
    if name.startswith(HUB):
        return hub_sets.rows(name)
    return _tfds_rows(name, data_dir)


def _tfds_rows(name: str, data_dir: str) -> Iterator[tuple[int, dict[str, Any]]]:
    builder, split = _open(name, data_dir)
    source = _source(name, builder, split)
    labels = {
        key: feature.names
        for key, feature in builder.info.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    for first in range(0, len(source), _BLOCK):
        ids = list(range(first, min(first + _BLOCK, len(source))))
        for i, found in zip(ids, source.__getitems__(ids), strict=True):
            yield i + 1, {key: _plain(value, labels.get(key)) for key, value in found.items()}


def fingerprint(name: str, data_dir: str) -> str:
    """SHA-256 over the split's name and features and the bytes of its prepared files; of a set of
    the hub, over its rows.
    """
    if name.startswith(HUB):
        return hub_sets.fingerprint(name)
    builder, split = _open(name, data_dir)
    _source(name, builder, split)
    digest = hashlib.sha256(f"{split} {builder.info.features.to_json()}".encode())
    for path in builder.info.splits[split.partition("[")[0]].filepaths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _plain(value: Any, names: list[str] | None) -> Any:
    """A feature as JSON would hold it; an unset class label is empty."""
    if names is not None:
        return names[int(value)] if 0 <= int(value) < len(names) else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one, None) for one in value]
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
    for module in _MODULES:  # imported for the effect of registering the set
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
        except Exception as error:  # whatever a builder's own code, a download or a disk raises
            raise _failure(name, error) from error
    return builder, split


def _source(name: str, builder: Any, split: str) -> Any:
    if split.partition("[")[0] not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise DataError(f"{name}: no split {split.partition('[')[0]!r}; the set has {known}")
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
