"""The input files of a split before tokenisation, and the selection of documents.

`survey` reads every file once, to reject bad input before anything is written, to count the
documents, and to allow sentences to be held out. Its result is cached by content, with a checksum;
a damaged record is replaced.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from jvae.data.formats import LONG, Example, LeftOut, Reader, scan
from jvae.data.progress import Progress
from jvae.data.sources import (
    PUBLIC,
    FileInfo,
    bad_line,
    expand,
    sha256,
    too_long,
)
from jvae.data.text_rules import BadLine
from jvae.errors import ConfigError, DataError

CACHE_VARIABLE = "JVAE_CACHE"
_KINDS, _OTHERS = 64, "others"  # kinds of left-out lines that a message lists
_FORMAT = 2  # increase when the stored content or the text rules change


class Located(NamedTuple):
    """A usable example and its origin; `document` is its index among the usable lines."""

    file: int
    line: int
    document: int
    example: Example


@dataclass(frozen=True)
class Corpus:
    """The checked files of one split. A document is a line of a file with one or more sentences."""

    reader: Reader
    files: tuple[FileInfo, ...]
    documents_f: tuple[int, ...]  # usable documents of each file
    dropped: dict[str, int]
    keep_d: np.ndarray | None = None  # which documents are selected; None: all
    notes: tuple[str, ...] = ()  # messages for the log on how the files were read

    @property
    def documents(self) -> int:
        """Number of usable documents in the files, including those not selected."""
        return sum(self.documents_f)

    def __len__(self) -> int:
        return self.documents if self.keep_d is None else int(self.keep_d.sum())

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return next(iter(self.files)).path + more

    def select(self, keep_d: np.ndarray) -> "Corpus":
        """Selects the documents where `keep_d` is True."""
        return replace(self, keep_d=keep_d)

    def examples(self) -> Iterator[Located]:
        """Yields every usable example of the files in order, with one line in memory at a time.

        Raises: DataError if a file has changed since `survey`.
        """
        document = -1
        for f, info in enumerate(self.files):
            before, last = document, 0
            for line, entry in scan(info.path, self.reader):
                if not isinstance(entry, Example):
                    continue
                if line != last:
                    document, last = document + 1, line
                yield Located(f, line, document, entry)
            if document - before != self.documents_f[f]:
                raise DataError(f"{info.path}: changed while it was being read; start again")

    def texts(self) -> Iterator[str]:
        """Yields the selected texts in order, read from the files."""
        for located in self.examples():
            if self.keep_d is None or self.keep_d[located.document]:
                yield located.example.text


def cache_dir(configured: str) -> Path:
    """The folder for prepared data: as configured, else $JVAE_CACHE, else the user's cache folder.

    Raises: ConfigError if the user's cache folder is needed and there is no home directory.
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


def _digest(name: str, reader: Reader) -> str:
    if not name.startswith(PUBLIC):
        return sha256(name)
    from jvae.data import public  # imports TFDS

    return public.fingerprint(name, reader.tfds_dir)


def survey(names: str | Path | Sequence[str | Path], reader: Reader, cache: Path) -> Corpus:
    """Reads and checks every file once.

    Raises: DataError for files that are missing, empty or unreadable, and for bad lines with
      data.on_error=raise.
    """
    files, documents, notes, dropped = [], [], [], Counter()
    for name in expand(names):
        reader.format_of(name)  # rejects an unknown suffix before the file is read
        digest = _digest(name, reader)
        facts = _survey_file(name, digest, reader, cache, notes)
        files.append(FileInfo(name, digest, facts["lines"]))
        documents.append(facts["documents"])
        dropped.update(facts["dropped"])
        notes += [f"{name}: {note}" for note in facts["notes"]]
    return Corpus(reader, tuple(files), tuple(documents), dict(dropped), notes=tuple(notes))


def reading_key(reader: Reader, name: str) -> dict[str, object]:
    """The options that determine what is read from a file, for cache keys."""
    options: dict[str, object] = {
        field.name: getattr(reader, field.name) for field in fields(reader)
    }
    del options["tfds_dir"]  # the digest identifies the data set
    kind = reader.format_of(name)
    for name in ("keep", "turns", "source_words"):
        if not options[name]:
            del options[name]  # keeps records from before the option existed valid
    if kind not in ("csv", "tsv"):
        del options["header"], options["quotes"]
    return options | {"format": kind}


class Survey(TypedDict):
    """Facts from reading a whole file, kept in the cache."""

    lines: int
    documents: int  # lines that hold an example
    dropped: dict[str, int]  # lines by reason
    notes: list[str]


def _survey_file(name: str, digest: str, reader: Reader, cache: Path, notes: list[str]) -> Survey:
    key = json.dumps([_FORMAT, digest, reading_key(reader, name)], sort_keys=True)
    path = cache / "surveys" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.exists():
        if facts := _stored(path, key):
            return facts
        notes.append(f"{path}: is damaged or belongs to another file; checking {name} again")
    facts = _scan_all(name, reader)
    write_whole(path, json.dumps({"check": _check(key, facts), "facts": facts}))
    return facts


def _stored(path: Path, key: str) -> Survey | None:
    """The result of an earlier survey; None if missing or damaged."""
    try:
        stored = json.loads(path.read_bytes())
        return stored["facts"] if stored["check"] == _check(key, stored["facts"]) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _check(key: str, facts: Survey) -> str:
    text = json.dumps([key, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _scan_all(name: str, reader: Reader) -> Survey:
    documents = last = counted = 0
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()  # by the values of a line's columns
    notes: list[str] = []
    first: tuple[str, BadLine] | None = None  # the first line that is too long
    long: set[int] = set()
    size = 0 if name.startswith(PUBLIC) else Path(name).stat().st_size
    size *= 3 if name.lower().endswith(".gz") else 1  # typical gzip ratio for text
    with Progress(f"checking {name}", size) as progress:
        for last, entry in scan(name, reader, notes):
            if isinstance(entry, LeftOut):
                _count(left_out, entry)
                continue
            if isinstance(entry, BadLine):
                if reader.on_error == "raise" and entry.reason in LONG:
                    first = first or (f"{name}:{last}", entry)
                    long.add(last)
                elif reader.on_error == "raise" and not first:
                    raise bad_line(f"{name}:{last}", entry)
                dropped[entry.reason] += 1
                continue
            progress.add(len(entry.text) + len(entry.source) + 1)
            documents, counted = documents + (last != counted), last
    if first:
        raise too_long(*first, len(long), last, positions=False)
    if reader.keep:
        if not documents and left_out:
            raise DataError(_nothing_kept(name, reader, left_out))
        lines = documents + left_out.total()
        notes.append(f"data.keep={reader.keep} keeps {documents:,} of {lines:,} lines")
    if not documents:
        raise DataError(
            f"{name}: none of its {last} lines can be used ({dict(dropped)}); "
            "expected UTF-8 text with one example per line"
        )
    return {"lines": last, "documents": documents, "dropped": dict(dropped), "notes": notes}


def _count(left_out: Counter[str], entry: LeftOut) -> None:
    """Counts a left-out line by its column values; beyond `_KINDS` kinds, as `_OTHERS`."""
    values = ", ".join(f"{column}={value}" for column, value in entry.values.items())
    values = values if len(values) <= 80 else f"{values[:80]}..."
    is_listed = values in left_out or len(left_out) < _KINDS
    left_out[values if is_listed else _OTHERS] += 1


def _nothing_kept(name: str, reader: Reader, left_out: Counter[str]) -> str:
    listed = ", ".join(f"{values} ({count:,})" for values, count in left_out.most_common(8))
    return (
        f"{name}: data.keep={reader.keep} leaves none of its {left_out.total():,} lines; they hold "
        f"{listed}"
    )


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a cache file atomically, text as UTF-8.

    Raises: DataError if the cache cannot be written.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # hosts may share process ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise cache_fault(path, error) from error


def cache_fault(path: Path, error: Exception) -> DataError:
    """The error for a cache that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DataError(
        f"{path.parent}: prepared data cannot be written there ({reason}); set data.cache or "
        f"{CACHE_VARIABLE} to a folder with room"
    )
