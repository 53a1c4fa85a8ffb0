"""Arrays that are computed once and then read from the cache of prepared data."""

import contextlib
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from jvae.data.corpus import write_whole
from jvae.errors import DataError

Arrays = dict[str, np.ndarray]
_SUM = hashlib.sha256().digest_size  # bytes of the checksum in front of the archive


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file, made and written if there is none.

    If the file is damaged or cannot be written, the arrays are made again.

    Args:
      path: a file whose name identifies the content, see `digest`.
    """
    if (stored := _stored(path)) is not None:
        return stored
    arrays, archive = make(), io.BytesIO()
    np.savez(archive, **cast(Any, arrays))
    content = archive.getvalue()
    with contextlib.suppress(DataError):
        write_whole(path, hashlib.sha256(content).digest() + content)
    return arrays


def _stored(path: Path) -> Arrays | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_SUM:]).digest() != data[:_SUM]:
        return None
    with np.load(io.BytesIO(data[_SUM:])) as arrays:
        return dict(arrays)


def digest(*parts: str | np.ndarray) -> str:
    """A digest of everything that determines the content of a file."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = memoryview(part.encode())
        else:
            total.update(f"{part.dtype} {part.shape} ".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        total.update(f"{len(data)} ".encode())
        total.update(data)
    return total.hexdigest()[:32]
