"""A split's input before it is tokenised: which files, what they hold, and which part counts.

`survey` reads every file once, so bad input is refused before anything is written, the size of the
work is known, and sentences can be held out. What it finds is kept in the cache by content.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvae.data import public
from jvae.data.formats import Example, Reader, scan
from jvae.data.progress import Progress
from jvae.data.sources import TFDS, BadLine, FileInfo, bad_line, expand, sha256
from jvae.errors import ConfigError, DataError

CACHE_VARIABLE = "JVAE_CACHE"


class Located(NamedTuple):
    """A usable example and its origin; `document` counts the usable lines of the corpus."""

    file: int
    line: int
    document: int
    example: Example


@dataclass(frozen=True)
class Corpus:
    """Files of one split, checked. A document is a line of a file; it may hold many sentences."""

    reader: Reader
    files: tuple[FileInfo, ...]
    documents_f: tuple[int, ...]  # usable ones of each file
    dropped: dict[str, int]
    keep_d: np.ndarray | None = None  # which documents count; None: all

    @property
    def documents(self) -> int:
        """Usable documents of the files, those that do not count included."""
        return sum(self.documents_f)

    def __len__(self) -> int:
        return self.documents if self.keep_d is None else int(self.keep_d.sum())

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return next(iter(self.files)).path + more

    def select(self, keep_d: np.ndarray) -> "Corpus":
        """The documents where `keep_d` is True."""
        return replace(self, keep_d=keep_d)

    def examples(self) -> Iterator[Located]:
        """Every usable example of the files in order, one line held at a time.

        Raises: DataError if a file no longer holds what `survey` found.
        """
        document = -1
        for f, info in enumerate(self.files):
            before, last = document, 0
            for line, one in scan(info.path, self.reader):
                if isinstance(one, BadLine):
                    continue
                if line != last:
                    document, last = document + 1, line
                yield Located(f, line, document, one)
            if document - before != self.documents_f[f]:
                raise DataError(f"{info.path}: changed while it was being read; start again")

    def texts(self) -> Iterator[str]:
        """The texts that count, in order, read from the files."""
        for one in self.examples():
            if self.keep_d is None or self.keep_d[one.document]:
                yield one.example.text


def cache_dir(configured: str) -> Path:
    """Where prepared data lives: as configured, else $JVAE_CACHE, else the user's cache folder.

    Raises: ConfigError where there is no home directory to find it in.
    """
    folder = configured or os.environ.get(CACHE_VARIABLE)
    try:
        if folder:
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jvae"
    except RuntimeError:  # no $HOME and no entry in the password file
        raise ConfigError(
            f"{folder or '~/.cache'}: there is no home directory; set data.cache or "
            f"{CACHE_VARIABLE} to a folder for prepared data"
        ) from None


def survey(names: str | Path | Sequence[str | Path], reader: Reader, cache: Path) -> Corpus:
    """Reads and checks every file once.

    Raises: DataError for files that are missing, empty or unreadable, and for bad lines under
      data.on_error=raise.
    """
    files, documents, dropped = [], [], Counter()
    for name in expand(names):
        public_set = name.startswith(TFDS)
        digest = public.fingerprint(name, reader.tfds_dir) if public_set else sha256(name)
        found = _survey_file(name, digest, reader, cache)
        files.append(FileInfo(name, digest, found["lines"]))
        documents.append(found["documents"])
        dropped.update(found["dropped"])
    return Corpus(reader, tuple(files), tuple(documents), dict(dropped))


def reading_key(reader: Reader, name: str) -> dict[str, Any]:
    """The options that decide what is read from a file, for keys of the cache."""
    options = {one.name: getattr(reader, one.name) for one in fields(reader)}
    del options["tfds_dir"]  # the digest stands for the set
    return options | {"format": reader.format_of(name)}


def _survey_file(name: str, digest: str, reader: Reader, cache: Path) -> dict:
    key = json.dumps([1, digest, reading_key(reader, name)], sort_keys=True)
    path = cache / "surveys" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        try:
            return json.loads(path.read_text())
        except ValueError:  # cut off by a full disk: made again
            pass
    documents = last = counted = 0
    dropped: Counter[str] = Counter()
    size = 0 if name.startswith(TFDS) else Path(name).stat().st_size
    size *= 3 if name.endswith(".gz") else 1  # about what gzip makes of text
    with Progress(f"checking {name}", size) as progress:
        for last, one in scan(name, reader):
            if isinstance(one, BadLine):
                if reader.on_error == "raise":
                    raise bad_line(f"{name}:{last}", one)
                dropped[one.reason] += 1
                continue
            progress.add(len(one.text) + len(one.source) + 1)
            documents, counted = documents + (last != counted), last
    if not documents:
        raise DataError(
            f"{name}: none of its {last} lines can be used ({dict(dropped)}); "
            "expected UTF-8 text with one example per line"
        )
    found = {"lines": last, "documents": documents, "dropped": dict(dropped)}
    write_whole(path, json.dumps(found))
    return found


def write_whole(path: Path, text: str) -> None:
    """Writes a file of the cache, whole or not at all.

    Raises: DataError where the cache cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise cache_fault(path, error) from error


def cache_fault(path: Path, error: Exception) -> DataError:
    """The one message for a cache that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DataError(
        f"{path.parent}: prepared data cannot be written there ({reason}); set data.cache or "
        f"{CACHE_VARIABLE} to a folder with room"
    )
