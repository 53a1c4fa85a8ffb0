"""Reads raw lines of corpus files, plain or gzip; errors name file and line.

Only regular files are read: pipes, devices, sockets and folders are rejected before being opened.
`raw_lines` reads one file in bounded memory; `formats.scan` turns its lines into examples.
"""

import difflib
import errno
import glob
import gzip
import hashlib
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jvae.data.text_rules import BadLine, shown
from jvae.errors import ConfigError, DataError

DROP_WARNING = 0.01  # share of dropped lines above which a run warns
TFDS, HUB = "tfds:", "hf:"
PUBLIC = (TFDS, HUB)  # prefixes of public data set names
# First bytes of files that are not UTF-8 text, and the message for each.
_OTHER = (
    (b"\xff\xfe", "is UTF-16 or UTF-32 text; convert it to UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; convert it to UTF-8"),
    (b"\0\0\xfe\xff", "is UTF-32 text; convert it to UTF-8"),
    (b"\x1f\x8b", "is gzip data; give it a name that ends in .gz"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or save the sheet as .csv"),
    (b"\x28\xb5\x2f\xfd", "is zstd data; unpack it"),
    (b"\xfd7zXZ\0", "is xz data; unpack it"),
    (b"BZh91AY", "is bzip2 data; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "is a rar archive; unpack it"),
    (b"%PDF-", "is a PDF document; extract its text"),
    (b"\xd0\xcf\x11\xe0", "is an old Office document; save it as text or .csv"),
    (b"\x89PNG", "is an image; expected text"),
    (b"GIF89a", "is an image; expected text"),
    (b"\xff\xd8\xff", "is an image; expected text"),
    (b"SQLite format 3\0", "is an SQLite database; write its texts out as .csv"),
    (b"\x93NUMPY", "is a NumPy array; write its texts out as .jsonl"),
    (b"\x89HDF", "is an HDF5 file; write its texts out as .jsonl"),
    (b"ARROW1\0", "is an Arrow file; write it out as .parquet"),
    (b"PAR1\x15", "is a Parquet file; give it a name that ends in .parquet"),
    (b"\x7fELF", "is a program; expected text"),
    (b"\x80\x04\x95", "is a Python pickle, which is never opened; write it out as .jsonl"),
)
_HEAD = 512  # number of leading bytes used to detect the file type
_KINDS = (
    (stat.S_ISFIFO, "a pipe; write its output to a file first"),
    (stat.S_ISCHR, "a device; expected a file"),
    (stat.S_ISBLK, "a device; expected a file"),
    (stat.S_ISSOCK, "a socket; expected a file"),
)


class FileInfo(NamedTuple):
    """One input, as named on the reporting card. `lines` includes dropped lines."""

    path: str
    sha256: str
    lines: int


@dataclass(frozen=True)
class Lines:
    """Usable sentences and their origin: `text[i]` is line `line_no[i]` of `files[file_no[i]]`."""

    text: Sequence[str]
    line_no: np.ndarray
    file_no: np.ndarray
    files: tuple[FileInfo, ...]
    dropped: dict[str, int]
    source: Sequence[str] | None = None  # the text that each text answers or translates
    label: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def where(self, i: int) -> str:
        """Origin of sentence i as file:line."""
        return f"{self.files[self.file_no[i]].path}:{self.line_no[i]}"

    def keep(self, keep_e: np.ndarray, dropped: dict[str, int]) -> "Lines":
        """Keeps the sentences where `keep_e` is True; `dropped` counts the others by reason."""

        def subset(texts: Sequence[str] | None) -> list[str] | None:
            return None if texts is None else [texts[i] for i in np.flatnonzero(keep_e).tolist()]

        return Lines(
            text=subset(self.text) or [],
            line_no=self.line_no[keep_e],
            file_no=self.file_no[keep_e],
            files=self.files,
            dropped=dict(Counter(self.dropped) + Counter(dropped)),
            source=subset(self.source),
            label=subset(self.label),
        )

    @property
    def warning(self) -> str | None:
        """A warning if more than 1 % of the lines were dropped, else None."""
        return drop_warning(self.files, self.dropped, len(self))


def drop_warning(files: Sequence[FileInfo], dropped: dict[str, int], kept: int) -> str | None:
    """A warning if more than 1 % of all lines were dropped, else None."""
    lost = sum(dropped.values())
    total = lost + kept
    if lost <= DROP_WARNING * total:
        return None
    reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(dropped.items()))
    names = ", ".join(file.path for file in files)
    return f"{names}: {lost} of {total} lines ({lost / total:.1%}) were dropped ({reasons})"


def check_on_error(on_error: str) -> None:
    """Raises ConfigError unless `on_error` is one of the two choices."""
    if on_error not in ("raise", "drop"):
        raise ConfigError(f"data.on_error={on_error!r}: expected 'raise' or 'drop'")


def bad_line(where: str, fault: BadLine) -> DataError:
    """The error for a line that cannot be used."""
    return DataError(
        f"{where}: {fault.detail}. "
        "Correct the line, or set data.on_error=drop to leave such lines out"
    )


def lines_of(texts: Sequence[str], name: str) -> Lines:
    """Wraps sentences in memory, such as the embedded corpus; errors refer to `name`:line."""
    digest = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
    return Lines(
        text=list(texts),
        line_no=np.arange(1, len(texts) + 1, dtype=np.int64),
        file_no=np.zeros(len(texts), np.int32),
        files=(FileInfo(name, digest, len(texts)),),
        dropped={},
    )


def too_long(where: str, fault: BadLine, count: int, total: int, positions: bool) -> DataError:
    """The error for texts over a limit, with their number and a remedy.

    Args:
      where, fault: location and fault of the first one.
      count, total: lines over the limit, and all lines.
      positions: whether the limit is the model's number of positions.
    """
    remedy = (
        "give the model more positions (model.*.positions)"
        if positions
        else "raise data.max_words and data.max_chars"
    )
    return DataError(
        f"{where}: {fault.detail}. {count} of {total} lines {'is' if count == 1 else 'are'} too "
        f"long: cut documents into sentences (data.sentences=true), {remedy}, or leave such lines "
        "out (data.on_error=drop, with data.max_words as the limit in words)"
    )


def expand(names: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Expands globs; names of files and data sets keep their order, matches of a glob are sorted.

    Raises: DataError for a glob without matches, and for an invalid file name.
    """
    names = [names] if isinstance(names, str | Path) else names
    paths: list[str] = []
    for name in map(str, names):
        if name.startswith(PUBLIC):
            paths.append(name)
            continue
        path = expand_user(name)
        if not glob.has_magic(name) or _status(path) is not None:
            paths.append(str(path))
            continue
        matches = sorted(
            match for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)
        )
        if not matches:
            raise DataError(
                f"{name}: no file matches; check the pattern, and quote it against the shell"
            )
        paths += matches
    return tuple(paths)


def expand_user(name: str) -> Path:
    """Resolves `~` and `~user` in a path. Raises: DataError if the user does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(
            f"{name}: the home folder {name.split('/')[0]} is unknown; write the path in full"
        ) from None


def raw_lines(path: str | Path, max_chars: int) -> Iterator[tuple[int, bytes | BadLine]]:
    """Yields (line number from 1, line or fault), with one line in memory at a time.

    Lines end at \\n, \\r\\n or \\r and include their line end.

    Args:
      max_chars: maximum characters per line; bounds the memory for a file without line ends.
    Raises: DataError if the file as a whole cannot be read.
    """
    number = 0
    with reading(Path(path)) as file:
        for number, line in split_lines(file, max_chars):
            yield number, line
    if number == 0:
        raise DataError(f"{path}: is empty; expected a text file with one example per line")


def split_lines(file: IO[bytes], max_chars: int) -> Iterator[tuple[int, bytes | BadLine]]:
    """Like `raw_lines`, for an open file, which may be empty."""
    most = 4 * max_chars + 64  # UTF-8 takes at most 4 bytes a character; room for blanks around
    detail = f"over {max_chars} characters; expected one example per line"
    huge = BadLine("too many characters", detail)
    number, begun, skipping, cut = 0, b"", False, False
    while chunk := file.readline(most + 1):
        if cut and chunk.startswith(b"\n"):  # belongs to the \r at the end of the last chunk
            chunk = chunk[1:]
        cut = chunk.endswith(b"\r")
        # bytes.splitlines splits at these three line ends only.
        for part in chunk.splitlines(keepends=True):
            whole = part.endswith((b"\n", b"\r"))
            if skipping:
                skipping = not whole
                continue
            line, begun = begun + part, b""
            if len(line) > most + 2 * whole:
                number, skipping = number + 1, not whole
                yield number, huge
            elif whole:
                number += 1
                yield number, line
            else:
                begun = line
    if begun:
        yield number + 1, begun


@contextmanager
def reading(path: Path, binary: bool = False) -> Iterator[IO[bytes]]:
    """Opens a file, decompressing it if its name ends in .gz.

    Args:
      binary: whether its format is not text.
    Raises: DataError unless it is a readable, regular file of the expected format, including errors
      that occur only while reading.
    """
    check_file(path)
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            if not binary:
                _check_text(path, file.peek(_HEAD)[:_HEAD])
            yield file  # pyright: ignore[reportReturnType]
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{path}: not a gzip file ({error}); "
            "drop .gz from its name if it is plain text, else copy it again"
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or truncated gzip file ({error}); copy it again"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_text(path: Path, head: bytes) -> None:
    for magic, advice in _OTHER:
        if head.startswith(magic):
            raise DataError(f"{path}: {advice}")
    pairs = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if pairs >= 2 and even + odd >= 0.4 * len(head):
        kind = "binary data" if min(even, odd) > 0.2 * pairs else "UTF-16 text"
        raise DataError(f"{path}: looks like {kind}; expected UTF-8 text")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises: DataError if the file cannot be read.
    """
    check_file(Path(path))
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def check_file(path: Path) -> None:
    """Raises DataError unless `path` is a regular file; suggests a file with a similar name."""
    status = _status(path)
    if status is None:
        near = []
        with suppress(OSError):
            names = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
            near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise DataError(f"{path}: no such file; {hint}")
    if stat.S_ISDIR(status.st_mode):
        raise DataError(
            f"{path}: is a folder; expected a text file with one example per line, "
            f"or a pattern such as {path}/*.txt"
        )
    for matches, kind in _KINDS:
        if matches(status.st_mode):
            raise DataError(f"{path}: is {kind}")


def _status(path: Path) -> os.stat_result | None:
    """The status of a file, following links; None if it does not exist.

    Raises: DataError if the status cannot be read.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:  # NUL, or a lone surrogate
        raise DataError(f"{shown(str(path))}: cannot be the name of a file ({error})") from error


def _unreadable(path: str | Path, error: OSError) -> DataError:
    hint = {
        errno.EACCES: "check its permissions and those of its folders",
        errno.EPERM: "check its permissions",
        errno.ENAMETOOLONG: "shorten it",
        errno.ELOOP: "its symbolic links form a loop",
    }.get(error.errno or 0, "check the disk")
    return DataError(f"{path}: cannot be read ({error.strerror or error}); {hint}")
