"""Arrays that are computed once and then read from the cache of prepared data."""

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jvae.data.corpus import write_whole
from jvae.errors import DataError

Arrays = dict[str, np.ndarray]


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file, made and written if there is none.

    If the file is damaged, by its archive's CRC, or cannot be written, the arrays are made again.

    Args:
      path: an .npz file whose name identifies the content, see `digest`.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    arrays = make()
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with contextlib.suppress(DataError):
        write_whole(path, content.getvalue())
    return arrays


def digest(*parts: bytes | str) -> str:
    """A digest of everything that determines an array."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]
