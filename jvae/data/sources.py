"""Corpus files to raw lines, plain or gzip; faults are named by file and line.

`raw_lines` reads one file in bounded memory; `formats.scan` makes examples of its lines.
"""

import difflib
import glob
import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jvae.errors import ConfigError, DataError

DROP_WARNING = 0.01  # share of dropped lines above which a run says so
TFDS = "tfds:"  # what the name of a public data set begins with
# What a file that is no text begins with, and what to do about it.
_OTHER = (
    (b"\xff\xfe", "is UTF-16 text; convert it to UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; convert it to UTF-8"),
    (b"\x1f\x8b", "is gzip data; give it a name that ends in .gz"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is zstd data; unpack it"),
    (b"\xfd7zXZ\0", "is xz data; unpack it"),
    (b"%PDF-", "is a PDF document; extract its text"),
    (b"\x89PNG", "is an image; expected text"),
    (b"PAR1\x15", "is a Parquet file; write it out as .jsonl"),
)


class BadLine(NamedTuple):
    """Why a line cannot be used: a reason to count by, and the particulars for the message."""

    reason: str
    detail: str


class FileInfo(NamedTuple):
    """One input, as the reporting card names it. `lines` counts dropped ones too."""

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
    source: Sequence[str] | None = None  # what each text answers or translates
    label: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def where(self, i: int) -> str:
        """Origin of sentence i as file:line."""
        return f"{self.files[self.file_no[i]].path}:{self.line_no[i]}"

    def keep(self, keep_e: np.ndarray, dropped: dict[str, int]) -> "Lines":
        """The sentences where `keep_e` is True; `dropped` counts the others by reason."""

        def some(texts: Sequence[str] | None) -> list[str] | None:
            return None if texts is None else [texts[i] for i in np.flatnonzero(keep_e).tolist()]

        return Lines(
            text=some(self.text) or [],
            line_no=self.line_no[keep_e],
            file_no=self.file_no[keep_e],
            files=self.files,
            dropped=dict(Counter(self.dropped) + Counter(dropped)),
            source=some(self.source),
            label=some(self.label),
        )

    @property
    def warning(self) -> str | None:
        """What to tell the user when more than 1 % of the lines were dropped, else None."""
        return drop_warning(self.files, self.dropped, len(self))


def drop_warning(files: Sequence[FileInfo], dropped: dict[str, int], kept: int) -> str | None:
    """A warning if the dropped lines are more than 1 % of all."""
    lost = sum(dropped.values())
    total = lost + kept
    if lost <= DROP_WARNING * total:
        return None
    reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(dropped.items()))
    names = ", ".join(one.path for one in files)
    return f"{names}: {lost} of {total} lines ({lost / total:.1%}) were dropped ({reasons})"


def check_on_error(on_error: str) -> None:
    """Raises ConfigError unless `on_error` is one of the two choices."""
    if on_error not in ("raise", "drop"):
        raise ConfigError(f"data.on_error={on_error!r}: expected 'raise' or 'drop'")


def bad_line(where: str, fault: BadLine) -> DataError:
    """The one message for a line that cannot be used."""
    return DataError(
        f"{where}: {fault.detail}. "
        "Correct the line, or set data.on_error=drop to leave such lines out"
    )


def lines_of(texts: Sequence[str], name: str) -> Lines:
    """Sentences made in memory, such as the embedded corpus; errors call them `name`:line."""
    digest = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
    return Lines(
        text=list(texts),
        line_no=np.arange(1, len(texts) + 1, dtype=np.int64),
        file_no=np.zeros(len(texts), np.int32),
        files=(FileInfo(name, digest, len(texts)),),
        dropped={},
    )


def expand(names: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Names of files and data sets in the order given, with the matches of each glob sorted.

    Raises: DataError for a glob that no file matches.
    """
    names = [names] if isinstance(names, str | Path) else names
    found: list[str] = []
    for name in map(str, names):
        if name.startswith(TFDS):
            found.append(name)
            continue
        path = Path(name).expanduser()
        if path.exists() or not glob.has_magic(name):
            found.append(str(path))
            continue
        matches = sorted(one for one in glob.glob(str(path), recursive=True) if Path(one).is_file())
        if not matches:
            raise DataError(
                f"{name}: no file matches; check the pattern, and quote it against the shell"
            )
        found += matches
    return tuple(found)


def raw_lines(path: str | Path, max_chars: int) -> Iterator[tuple[int, bytes | BadLine]]:
    """Yields (line number from 1, line or what is wrong with it), holding one line at a time.

    Args:
      max_chars: most characters of a line; bounds the memory a file without line ends can take.
    Raises: DataError where the file as a whole cannot be read.
    """
    # UTF-8 takes at most 4 bytes a character; room for blanks around
    most_bytes = 4 * max_chars + 64
    try:
        with _open(Path(path)) as file:
            number = 0
            while raw := file.readline(most_bytes + 1):
                number += 1
                if len(raw) > most_bytes and not raw.endswith(b"\n"):
                    while (rest := file.readline(most_bytes)) and not rest.endswith(b"\n"):
                        pass
                    detail = f"over {max_chars} characters; expected one example per line"
                    yield number, BadLine("too many characters", detail)
                else:
                    yield number, raw
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
    if number == 0:
        raise DataError(f"{path}: is empty; expected a text file with one example per line")


def sha256(path: str | Path) -> str:
    """Digest of a file's bytes, in hexadecimal.

    Raises: DataError if the file cannot be read.
    """
    check_file(Path(path))
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def check_file(path: Path) -> None:
    """Raises DataError unless there is such a file; names one that is spelt alike."""
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; expected a text file with one example per line, "
            f"or a pattern such as {path}/*.txt"
        )
    if not path.exists():
        near = []
        if path.parent.is_dir():
            names = [one.name for one in path.parent.iterdir() if one.is_file()]
            near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise DataError(f"{path}: no such file; {hint}")


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions")


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    check_file(path)
    if path.suffix == ".gz":
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; expected gzip text with one example per line")
        return gzip.open(path, "rb")
    with path.open("rb") as file:
        head = file.read(8)
    for magic, advice in _OTHER:
        if head.startswith(magic):
            raise DataError(f"{path}: {advice}")
    return path.open("rb")
