"""Random access to prepared corpora on disk.

A folder can be opened with `tfds.builder_from_directory`: it has array_record shards of one split,
`train`, with one record per example (token ids of every side, the text and, if present, source and
label). In addition, the memory-mapped files `columns/NAME.npy` have one integer per example, so
that planning and counting need not read records.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from jvae.data.rows import Encoded
from jvae.errors import DataError

NAME, SPLIT = "corpus", "train"
_BLOCK = 1024  # records per read when reading all of them


def _open(folder: Path) -> Any:
    import tensorflow_datasets as tfds  # takes long; the embedded corpus does not need it

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split=SPLIT)  # pyright: ignore[reportCallIssue]


class Records:
    """Examples of a prepared folder; pickles as its path and the selected examples."""

    def __init__(self, folder: Path, sides: Sequence[str], ids_e: np.ndarray | None = None) -> None:
        self.folder, self.sides, self._ids_e = folder, tuple(sides), ids_e
        self._source: Any = None

    def __getstate__(self) -> Mapping[str, object]:
        return self.__dict__ | {"_source": None}

    def read(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The records of the examples `ids`, in that order.

        Raises: DataError if the files no longer exist.
        """
        chosen = np.asarray(ids, np.int64)
        if self._ids_e is not None:
            chosen = self._ids_e[chosen]
        try:
            if self._source is None:
                self._source = _open(self.folder)
            return self._source.__getitems__(chosen.tolist())
        except Exception as error:  # TFDS and array_record raise different exceptions
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{self.folder}: prepared data can no longer be read ({reason}); "
                "run the same command to prepare it again and resume"
            ) from error

    def take(self, ids: Sequence[int] | np.ndarray) -> dict[str, Encoded]:
        """Tokens of the examples `ids` on every side."""
        records = self.read(ids)
        return {side: Encoded.of([record[side] for record in records]) for side in self.sides}

    def column(self, name: str) -> np.ndarray:
        """One integer per example: int32, or int64 for digests."""
        values = np.load(self.folder / "columns" / f"{name}.npy", mmap_mode="r")
        return values if self._ids_e is None else values[self._ids_e]


class StoredSide:
    """One side of a prepared corpus."""

    def __init__(self, records: Records, side: str) -> None:
        self._records, self._side = records, side
        self.lengths: np.ndarray = records.column(f"{side}_length")

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of example i."""
        return self._records.read([i])[0][self._side]

    def take(self, ids: np.ndarray) -> Encoded:
        """The examples `ids`, in that order."""
        return self._records.take(ids)[self._side]


class StoredTexts(Sequence[str]):
    """The texts, sources or labels of a prepared corpus, read lazily."""

    def __init__(self, records: Records, field: str, size: int) -> None:
        self._records, self._field, self._size = records, field, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return self._some(range(*i.indices(self._size)))
        if not -self._size <= i < self._size:
            raise IndexError(i)
        return self._some([i % self._size])[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, self._size, _BLOCK):
            yield from self._some(range(first, min(first + _BLOCK, self._size)))

    def _some(self, ids: Sequence[int]) -> list[str]:
        return [record[self._field].decode() for record in self._records.read(ids)]
