"""Text files to checked sentences, one per line, plain or gzip; faults are named by file and line.

`scan` reads one file in bounded memory and is where further formats attach; `read_lines` collects
what it yields.
"""

import difflib
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
_BOM = "\ufeff"


class BadLine(NamedTuple):
    """Why a line cannot be used: a reason to count by, and the particulars for the message."""

    reason: str
    detail: str


class FileInfo(NamedTuple):
    """One input file, as the reporting card names it. `lines` counts dropped ones too."""

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

    def __len__(self) -> int:
        return len(self.text)

    def where(self, i: int) -> str:
        """Origin of sentence i as file:line."""
        return f"{self.files[self.file_no[i]].path}:{self.line_no[i]}"

    def keep(self, keep_e: np.ndarray, dropped: dict[str, int]) -> "Lines":
        """The sentences where `keep_e` is True; `dropped` counts the others by reason."""
        return Lines(
            text=[self.text[i] for i in np.flatnonzero(keep_e).tolist()],
            line_no=self.line_no[keep_e],
            file_no=self.file_no[keep_e],
            files=self.files,
            dropped=dict(Counter(self.dropped) + Counter(dropped)),
        )

    @property
    def warning(self) -> str | None:
        """What to tell the user when more than 1 % of the lines were dropped, else None."""
        lost = sum(self.dropped.values())
        total = lost + len(self)
        if lost <= DROP_WARNING * total:
            return None
        reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(self.dropped.items()))
        names = ", ".join(one.path for one in self.files)
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


def read_lines(
    paths: str | Path | Sequence[str | Path],
    on_error: str = "raise",
    max_words: int | None = None,
    max_chars: int = 1_000_000,
) -> Lines:
    """Reads sentences, one per line, of one file or of several in the order given.

    Lines are kept raw but for the line end, blanks around the text and byte order marks.

    Args:
      on_error: 'raise' stops at the first bad line; 'drop' leaves bad lines out and counts them by
        reason.
      max_words: most whitespace-separated words of a line; None for no limit.
      max_chars: most characters of a line; bounds the memory a file without line ends can take.
    Raises: DataError for files that are missing, empty or unreadable, and for bad lines under
      'raise'.
    """
    check_on_error(on_error)
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    text: list[str] = []
    line_no: list[int] = []
    file_no: list[int] = []
    files: list[FileInfo] = []
    dropped: Counter[str] = Counter()
    for f, path in enumerate(paths):
        usable, last = len(text), 0
        for last, line in scan(path, max_words, max_chars):  # noqa: B007 (read after the loop)
            if isinstance(line, BadLine):
                if on_error == "raise":
                    raise bad_line(f"{path}:{last}", line)
                dropped[line.reason] += 1
                continue
            text.append(line)
            line_no.append(last)
            file_no.append(f)
        if len(text) == usable:
            raise DataError(
                f"{path}: none of its {last} lines can be used; "
                "expected UTF-8 text with one sentence per line"
            )
        files.append(FileInfo(str(path), _sha256(path), last))
    return Lines(
        text=text,
        line_no=np.asarray(line_no, np.int64),
        file_no=np.asarray(file_no, np.int32),
        files=tuple(files),
        dropped=dict(dropped),
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


def scan(
    path: str | Path, max_words: int | None = None, max_chars: int = 1_000_000
) -> Iterator[tuple[int, str | BadLine]]:
    """Yields (line number from 1, sentence or what is wrong with it), holding one line at a time.

    Raises: DataError where the file as a whole cannot be read.
    """
    most_bytes = (
        4 * max_chars + 64
    )  # UTF-8 takes at most 4 bytes a character; room for blanks around
    try:
        with _open(Path(path)) as file:
            number = 0
            while raw := file.readline(most_bytes + 1):
                number += 1
                if len(raw) > most_bytes and not raw.endswith(b"\n"):
                    while (rest := file.readline(most_bytes)) and not rest.endswith(b"\n"):
                        pass
                    detail = f"over {max_chars} characters; expected one sentence per line"
                    yield number, BadLine("too many characters", detail)
                else:
                    yield number, _parse(raw, max_words, max_chars)
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
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if number == 0:
        raise DataError(f"{path}: is empty; expected a text file with one sentence per line")


def _parse(raw: bytes, max_words: int | None, max_chars: int) -> str | BadLine:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return BadLine("invalid UTF-8", f"not valid UTF-8 ({found})")
    if "\0" in text:
        return BadLine("NUL", f"holds a NUL character at column {text.index(chr(0)) + 1}")
    # Files joined by `cat` carry byte order marks in the middle, so every line may start with one.
    text = text.strip().lstrip(_BOM).strip()
    if not text:
        return BadLine("empty", "empty line; expected a sentence")
    if "\r" in text:
        return BadLine(
            "carriage return", "holds a carriage return inside; expected line ends LF or CRLF"
        )
    if len(text) > max_chars:
        return BadLine(
            "too many characters", f"{len(text)} characters, over the limit of {max_chars}"
        )
    if max_words is not None and (words := len(text.split())) > max_words:
        return BadLine("too many words", f"{words} words, over the limit of {max_words}")
    return text


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a text file with one sentence per line")
    if not path.exists():
        near = []
        if path.parent.is_dir():
            names = [one.name for one in path.parent.iterdir() if one.is_file()]
            near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise DataError(f"{path}: no such file; {hint}")
    if path.suffix == ".gz":
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; expected gzip text with one sentence per line")
        return gzip.open(path, "rb")
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"\x1f\x8b":
        raise DataError(f"{path}: is gzip data; give it a name that ends in .gz")
    if head in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: is UTF-16 text; convert it to UTF-8")
    return path.open("rb")


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
