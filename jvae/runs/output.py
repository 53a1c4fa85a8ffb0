"""Writes files atomically, and handles paths that are not regular files: devices, pipes, links.

A rename would replace /dev/null or a pipe by a regular file, and would detach a link from its
target. Therefore devices and pipes are written to, links are followed, and only regular files are
replaced.
"""

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

# Errors of a rename for which the file itself may still be writable, such as a read-only folder or
# a mount point.
_NO_RENAME = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS)


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a whole file or nothing; to a device or pipe, all of the content. Creates folders.

    Raises: OSError; BrokenPipeError if the reader of a pipe has exited.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    if not _is_replaceable(path):
        # Append, because /dev/stdout may be a file that already has content.
        with path.open("ab", buffering=0) as file:
            _write_all(file.fileno(), data)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}-{threading.get_ident():x}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
        with contextlib.suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(part, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if error.errno not in _NO_RENAME or not os.access(target, os.W_OK) or target.is_dir():
            raise
        target.write_bytes(data)


def _is_replaceable(path: Path) -> bool:
    """Whether a rename may replace the path: it is a regular file or does not exist."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return False
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)  # for a folder the rename raises a clear error


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
