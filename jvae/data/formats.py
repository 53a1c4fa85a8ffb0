"""Lines of text, TSV and JSON Lines to checked examples: a text, perhaps its source and label."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jvae.data import public
from jvae.data.sentences import split_sentences
from jvae.data.sources import TFDS, BadLine, raw_lines
from jvae.errors import DataError

_BOM = "\ufeff"
_BY_SUFFIX = {".txt": "text", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = ("auto", "text", "tsv", "jsonl")


class Example(NamedTuple):
    """What a line holds; source and label are empty unless they are read."""

    text: str
    source: str = ""
    label: str = ""


Row = list[Example] | BadLine  # one line may hold several texts


@dataclass(frozen=True)
class Reader:
    """The values of config section `data` that decide what is read from a file.

    `text`, `source` and `label` select a TSV column by number from 0 (negative from the end) or by
    the name in the file's first line, a key of each JSON object, or a feature of a TFDS set. Left
    empty, the text is the whole line, the last column, or "text"; source and label are not read. A
    JSON list of strings is several texts, or one source joined by blanks.
    """

    format: str = "auto"
    text: str = ""
    source: str = ""
    label: str = ""
    sentences: bool = False  # every text is a document to be cut into sentences
    on_error: str = "raise"
    max_words: int | None = None  # most whitespace-separated words of a text and its source
    max_chars: int = 1_000_000
    tfds_dir: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """What is read, by the name of the example's field."""
        chosen = {"text": self.text, "source": self.source, "label": self.label}
        return {name: key for name, key in chosen.items() if key or name == "text"}

    def format_of(self, name: str) -> str:
        """Format of a file: as set, else by its suffix under .gz, else text."""
        if name.startswith(TFDS):
            return "tfds"
        if self.format != "auto":
            return self.format
        return _BY_SUFFIX.get(Path(name.removesuffix(".gz")).suffix.lower(), "text")


def scan(name: str, reader: Reader) -> Iterator[tuple[int, Example | BadLine]]:
    """Yields (line number from 1, example or what is wrong with it), holding one line at a time.

    A line of several texts or sentences gives its number several times.

    Raises: DataError where the file as a whole cannot be read or lacks a chosen column.
    """
    kind = reader.format_of(name)
    if kind == "tfds":
        rows = ((i, _from_object(x, reader)) for i, x in public.rows(name, reader.tfds_dir))
    else:
        rows = _from_lines(name, kind, reader)
    for number, row in rows:
        if isinstance(row, BadLine):
            yield number, row
            continue
        for example in row:
            for one in _checked(example, reader):
                yield number, one


def _from_lines(name: str, kind: str, reader: Reader) -> Iterator[tuple[int, Row]]:
    parse: Callable[[str], Row | None] = _from_text
    if kind == "tsv":
        parse = _Columns(name, reader).row
    elif kind == "jsonl":
        parse = partial(_from_json, reader=reader)
    elif set(reader.fields) != {"text"}:
        key = "source" if reader.source else "label"
        raise DataError(
            f"{name}: data.{key} is set, but plain text has no columns; "
            "bring .tsv or .jsonl files, or set data.format"
        )
    for number, raw in raw_lines(name, reader.max_chars):
        line = _decode(raw) if isinstance(raw, bytes) else raw
        row = line if isinstance(line, BadLine) else parse(line)
        if row is not None:
            yield number, row


def _from_text(line: str) -> Row:
    return [Example(line)]


def _decode(raw: bytes) -> str | BadLine:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return BadLine("invalid UTF-8", f"not valid UTF-8 ({found})")
    # Files joined by `cat` carry byte order marks in the middle, so every line may start with one.
    return text.lstrip(_BOM)


class _Columns:
    """Splits TSV lines; all must have as many columns as the file's first."""

    def __init__(self, name: str, reader: Reader) -> None:
        self.name, self.chosen = name, reader.fields | {"text": reader.text or "-1"}
        self.header = any(not _is_number(key) for key in self.chosen.values() if key != "-1")
        self.width = 0
        self.place: dict[str, int] = {}

    def row(self, line: str) -> Row | None:
        """The example of a line; None for a header."""
        if not line.strip():
            return BadLine("empty", "empty line; expected tab-separated columns")
        columns = line.rstrip("\r\n").split("\t")
        if not self.width:
            self.width = len(columns)
            self.place = {field: self._find(key, columns) for field, key in self.chosen.items()}
            if self.header:
                return None
        if len(columns) != self.width:
            detail = f"{len(columns)} columns, but the file's first line has {self.width}"
            return BadLine("wrong number of columns", detail)
        return [Example(**{field: columns[i] for field, i in self.place.items()})]

    def _find(self, key: str, columns: list[str]) -> int:
        field = next(name for name, one in self.chosen.items() if one == key)
        if _is_number(key):
            place = int(key)
            if not -self.width <= place < self.width:
                raise DataError(
                    f"{self.name}: data.{field}={key}, but its first line has {self.width} "
                    f"columns; expected 0 to {self.width - 1}. Columns are separated by tabs"
                )
            return place
        names = [one.strip() for one in columns]
        if key not in names:
            raise DataError(
                f"{self.name}: data.{field}={key}, but its first line names no such column; "
                f"it reads {', '.join(map(repr, names[:8]))}"
            )
        return names.index(key)


def _is_number(key: str) -> bool:
    return key.removeprefix("-").isdecimal()


def _from_json(line: str, reader: Reader) -> Row:
    if not line.strip():
        return BadLine("empty", "empty line; expected a JSON object")
    try:
        found = json.loads(line.strip())
    except json.JSONDecodeError as error:
        return BadLine("invalid JSON", f"not valid JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return BadLine("invalid JSON", "JSON nested too deeply")
    if not isinstance(found, dict):
        detail = f"holds a JSON {_json_type(found)}; expected an object with keys"
        return BadLine("no JSON object", detail)
    return _from_object(found, reader)


def _from_object(found: dict[str, Any], reader: Reader) -> Row:
    values: dict[str, list[str]] = {}
    for field, key in (reader.fields | {"text": reader.text or "text"}).items():
        if key not in found:
            keys = ", ".join(map(repr, list(found)[:8]))
            return BadLine("missing key", f"has no key {key!r} (data.{field}); its keys are {keys}")
        value = found[key]
        if field == "label" and isinstance(value, int | float):
            value = json.dumps(value)
        many: list[Any] = value if isinstance(value, list) and field != "label" else [value]
        if not all(isinstance(one, str) for one in many):
            wanted = "a string" if field == "label" else "a string or a list of strings"
            kind = next(_json_type(one) for one in many if not isinstance(one, str))
            return BadLine("wrong type", f"key {key!r} holds a {kind}; expected {wanted}")
        if not many:
            return BadLine("empty", f"key {key!r} holds an empty list; expected a text")
        # One text, one line: the files that a run writes hold a text per line.
        values[field] = [" ".join(one.splitlines()) for one in many]
    rest = {field: " ".join(many) for field, many in values.items() if field != "text"}
    return [Example(text, **rest) for text in values["text"]]


def _json_type(value: object) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    return "null" if value is None else kinds.get(type(value), "object")


def _checked(example: Example, reader: Reader) -> Iterator[Example | BadLine]:
    label = example.label.strip()
    if reader.label and not label:
        yield BadLine("empty label", "empty label; expected one beside every text")
        return
    source = _clean(example.source, reader) if reader.source else ""
    if isinstance(source, BadLine):
        yield BadLine(source.reason, f"its source: {source.detail}")
        return
    text = _clean(example.text, reader)
    if isinstance(text, BadLine):
        yield text
        return
    for one in split_sentences(text) if reader.sentences else (text,):
        words = len(one.split()) + len(source.split())
        if reader.max_words is not None and words > reader.max_words:
            whose = " with its source" if source else ""
            detail = f"{words} words{whose}, over the limit of {reader.max_words}"
            yield BadLine("too many words", detail)
        else:
            yield Example(one, source, label)


def _clean(text: str, reader: Reader) -> str | BadLine:
    """The text without blanks around it, raw otherwise, or why it cannot be used."""
    if "\0" in text:
        return BadLine("NUL", f"holds a NUL character at column {text.index(chr(0)) + 1}")
    text = text.strip().lstrip(_BOM).strip()
    if not text:
        return BadLine("empty", "empty line; expected a sentence")
    if "\r" in text:
        detail = "holds a carriage return inside; expected line ends LF or CRLF"
        return BadLine("carriage return", detail)
    if len(text) > reader.max_chars:
        detail = f"{len(text)} characters, over the limit of {reader.max_chars}"
        return BadLine("too many characters", detail)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell what UTF-8 cannot
            return BadLine("invalid UTF-8", "holds half of a surrogate pair")
    return text
