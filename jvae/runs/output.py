"""Files that appear whole or not at all, and what is not a file: devices, pipes, links.

A rename would put a regular file in the place of /dev/null or of a pipe, and cut a link from its
target. So devices and pipes are written to, links are followed, and files alone are replaced.
"""

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

# Answers to a rename where the file itself may be writable: its folder is not, or it is a mount.
_NO_RENAME = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS)


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a whole file or nothing; to a device or a pipe, all of it. Folders are created.

    Raises: OSError. BrokenPipeError where the reader of a pipe has gone.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    if not _is_replaceable(path):
        # Appended, as /dev/stdout may be a file that has lines already.
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
    """Whether a rename may put a file there: it is a regular file, or nothing yet."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return False
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)  # of a folder the rename says what it is


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
