"""Reads rows of the chosen columns from Parquet files, in batches, with pyarrow."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jvae.data.sources import reading
from jvae.data.text_rules import BadLine, shown
from jvae.errors import DataError

_BATCH = 1_024  # rows in memory at a time


def rows(name: str, columns: Sequence[str]) -> Iterator[tuple[int, object]]:
    """Yields (row number from 1, values by column or the row's fault).

    Raises: DataError unless `name` is a Parquet file with these columns.
    """
    import pyarrow  # takes 0.3 s, so imported only when needed
    from pyarrow import parquet

    number = 0
    with reading(Path(name), binary=True) as file:
        try:
            packed = name.lower().endswith(".gz")
            opened = parquet.ParquetFile(io.BytesIO(file.read()) if packed else file)
            names = opened.schema_arrow.names
            for column in columns:
                if names.count(column) != 1:
                    problem = "several columns" if column in names else "no column"
                    listed = ", ".join(map(shown, names[:8])) + (", ..." * (len(names) > 8))
                    raise DataError(
                        f"{name}: {problem} {shown(column)}; it has {listed}. Choose with "
                        "data.text, data.source, data.label and data.keep"
                    )
            for batch in opened.iter_batches(_BATCH, columns=list(columns)):
                for row in _values(batch):
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{name}: not a Parquet file that can be read ({reason}); write it again"
            ) from error
    if number == 0:
        raise DataError(f"{name}: has no rows; expected one text per row")


def _values(batch: Any) -> Iterator[object]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # reading row by row finds the bad one
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield BadLine("invalid UTF-8", "not valid UTF-8")
