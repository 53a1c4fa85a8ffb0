"""Reads corpus files of all formats into checked examples: a text, optionally source and label.

.txt                one text per line
.csv .tsv           a table, see `jvae.data.tables`
.jsonl .ndjson      one JSON object or string per line
.json               one array of objects or strings
.parquet            a table
tfds:NAME:SPLIT     a public data set, see `jvae.data.public`

Any file may be compressed as .gz. Texts follow `jvae.data.text_rules`, so a corpus gives the same
lines in every format. Files with another suffix are rejected unless `data.format` is set.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jvae.data import json_rows, parquet
from jvae.data.sentences import split_sentences
from jvae.data.sources import PUBLIC, raw_lines, reading
from jvae.data.tables import KEEP, Table, is_number, setting
from jvae.data.text_rules import BadLine, clean, decode, shown
from jvae.errors import ConfigError, DataError
from jvae.registry import Registry

HEADERS = ("auto", "true", "false")
LONG = ("too many words", "too many characters")  # reasons with their own remedies


class Example(NamedTuple):
    """The example on a line; source and label are empty unless they are read."""

    text: str
    source: str = ""
    label: str = ""


class LeftOut(NamedTuple):
    """A line that `data.keep` leaves out; `values` has its values by column."""

    values: dict[str, str]


Row = list[Example] | BadLine | LeftOut  # a line may contain several texts


class FileReader(NamedTuple):
    """A registered format.

    rows(name, reader, notes) -> (line number from 1, the line's examples or its fault)
      `name` is the path of a file, plain or .gz; choices that the file leaves open are appended to
      `notes`. Raises DataError if the file as a whole cannot be read.
    suffixes: suffixes that `data.format=auto` maps to this format.
    keeps: whether the format supports `data.keep`, see `Reader.left_out`.
    """

    rows: Callable[[str, "Reader", list[str]], Iterator[tuple[int, Row]]]
    suffixes: tuple[str, ...] = ()
    keeps: bool = False


READERS: Registry[FileReader] = Registry("reader", "data.format")


@dataclass(frozen=True)
class Reader:
    """The values of config section `data` that determine what is read from a file.

    `text`, `source` and `label` select a column of a CSV or TSV, by number from 0 (negative from
    the end) or by its name in the first line, a column of a Parquet file, a key of each JSON
    object, or a feature of a public data set. If `text` is empty, the text is the whole line, the
    column or key "text", or the last column of a table without names. If `source` or `label` is
    empty, it is not read. A JSON list of strings gives several texts, or one source joined by
    spaces or by `turns`. `keep` selects lines by the values of such columns.
    """

    format: str = "auto"
    text: str = ""
    source: str = ""
    label: str = ""
    turns: str = ""  # separator between the entries of a list that forms one source
    source_words: int = 0  # only the last words of a source are read, up to this number; 0: all
    keep: str = ""  # COLUMN=VALUE, comma-separated: keep lines with one of a column's values
    header: str = "auto"  # whether the first line of a CSV or TSV names its columns: true, false
    quotes: bool = True  # whether fields of a CSV or TSV may be quoted
    sentences: bool = False  # every text is a document to be split into sentences
    on_error: str = "raise"
    max_words: int | None = None  # maximum whitespace-separated words of a text and its source
    max_chars: int = 1_000_000
    tfds_dir: str = ""

    def __post_init__(self) -> None:
        if self.format != "auto":
            _ = READERS[self.format]
        _ = self.conditions
        if self.header == "false":
            for field, key in self.columns.items():
                if key and not is_number(key):
                    raise ConfigError(
                        f"data.header=false with {setting(field)}={key}: only a header names "
                        "columns; choose by number, or leave data.header at auto"
                    )

    @property
    def fields(self) -> dict[str, str]:
        """The columns to read, by the name of the example's field."""
        chosen = {"text": self.text, "source": self.source, "label": self.label}
        return {name: key for name, key in chosen.items() if key or name == "text"}

    @cached_property
    def conditions(self) -> dict[str, list[str]]:
        """The values that `keep` allows, by column.

        Raises: ConfigError if `keep` does not have the form COLUMN=VALUE.
        """
        allowed: dict[str, list[str]] = {}
        for part in self.keep.split(",") if self.keep.strip() else ():
            column, equals, value = (word.strip() for word in part.partition("="))
            if not (column and equals and value):
                raise ConfigError(
                    f"data.keep={self.keep}: expected COLUMN=VALUE, such as 0=1, or several "
                    "separated by commas"
                )
            allowed.setdefault(column, []).append(value)
        return allowed

    @property
    def columns(self) -> dict[str, str]:
        """`fields` plus, under separate names, the columns that `keep` tests."""
        return self.fields | {f"{KEEP}{i}": key for i, key in enumerate(self.conditions)}

    def left_out(self, texts: Mapping[str, str]) -> LeftOut | None:
        """Applies `keep` to a line; None means that the line is kept.

        Args:
          texts: the line's values by name of `columns`.
        """
        if not self.keep:
            return None
        conditions = self.conditions
        values = {key: texts[f"{KEEP}{i}"].strip() for i, key in enumerate(conditions)}
        return None if all(values[key] in conditions[key] for key in values) else LeftOut(values)

    def format_of(self, name: str) -> str:
        """Format of a file: as configured, else from its suffix (ignoring .gz).

        Raises: DataError for an unknown suffix.
        """
        if name.startswith(PUBLIC):
            return name.partition(":")[0]
        if self.format != "auto":
            return self.format
        path = Path(name)
        suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
        by_suffix = {ending: kind for kind, member in READERS.items() for ending in member.suffixes}
        if suffix not in by_suffix:
            endings = ", ".join(sorted(filter(None, by_suffix)))
            raise DataError(
                f"{name}: {suffix} files are not supported; expected one of {endings}, plain or "
                ".gz. Rename the file, or set data.format to its format"
            )
        return by_suffix[suffix]


def scan(
    name: str, reader: Reader, notes: list[str] | None = None
) -> Iterator[tuple[int, Example | BadLine | LeftOut]]:
    """Yields (line number from 1, example or fault), with one line in memory at a time.

    A line with several texts or sentences is yielded several times under the same number.

    Args:
      notes: choices that the file leaves open are appended to it.
    Raises: DataError if the file as a whole cannot be read or lacks a chosen column.
    """
    for number, row in _rows(name, reader, [] if notes is None else notes):
        if isinstance(row, BadLine | LeftOut):
            yield number, row
            continue
        for example in row:
            for item in _checked(example, reader):
                yield number, item


def _rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    kind = reader.format_of(name)
    if name.startswith(PUBLIC):
        from jvae.data import public  # imports TFDS

        return _values(public.rows(name, reader.tfds_dir), reader)
    if reader.keep and not READERS[kind].keeps:
        raise DataError(
            f"{name}: data.keep={reader.keep} chooses lines by a column, which files of format "
            f"{kind} do not have; use .csv, .tsv, .jsonl, .json, .parquet or a public data set"
        )
    return READERS[kind].rows(name, reader, notes)


def _table(delimiter: str) -> FileReader:
    def rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
        lines = raw_lines(name, reader.max_chars)
        table = Table(
            name,
            lines,
            reader.columns,
            delimiter=delimiter,
            header=reader.header,
            quotes=reader.quotes,
            most=reader.max_chars,
        )
        notes.append(table.note)
        for number, row in table:
            if isinstance(row, BadLine):
                yield number, row
            else:
                example = Example(**{field: row[field] for field in reader.fields})
                yield number, reader.left_out(row) or [example]

    return FileReader(rows, (".tsv",) if delimiter else (".csv",), keeps=True)


def _keys(reader: Reader) -> dict[str, str]:
    return reader.columns | {"text": reader.text or "text"}


def _values(values: Iterable[tuple[int, object]], reader: Reader) -> Iterator[tuple[int, Row]]:
    keys = _keys(reader)
    for number, value in values:
        yield number, _from_value(value, keys, reader)


def _parquet_rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    del notes
    return _values(parquet.rows(name, list(dict.fromkeys(_keys(reader).values()))), reader)


def _json_rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    del notes
    with reading(Path(name)) as file:
        yield from _values(json_rows.from_array(name, file.read()), reader)


def _jsonl_rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    del notes
    return _values(json_rows.from_lines(raw_lines(name, reader.max_chars)), reader)


def _text_rows(name: str, reader: Reader, notes: list[str]) -> Iterator[tuple[int, Row]]:
    del notes
    if set(reader.fields) != {"text"}:
        key = "source" if reader.source else "label"
        raise DataError(
            f"{name}: data.{key} is set, but plain text has no columns; "
            "use .csv, .tsv, .jsonl or .parquet files, or set data.format"
        )
    for number, raw in raw_lines(name, reader.max_chars):
        line = decode(raw) if isinstance(raw, bytes) else raw
        if number == 1 and reader.format == "auto" and isinstance(line, str):
            _check_no_json(name, line)
        yield number, line if isinstance(line, BadLine) else [Example(line)]


def _check_no_json(name: str, line: str) -> None:
    """Raises DataError if a text file begins with a JSON object."""
    if not line.startswith("{"):
        return
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        raise DataError(
            f"{name}: holds JSON objects; name it .jsonl or set data.format=jsonl, or set "
            "data.format=text to read its lines as they are"
        )


def _from_value(value: object, keys: dict[str, str], reader: Reader) -> Row:
    """Examples from a JSON value, or from a row of a Parquet file or data set."""
    if isinstance(value, BadLine):
        return value
    if isinstance(value, str) and set(keys) == {"text"}:
        return [Example(value)]
    if not isinstance(value, dict):
        kind = _type_of(value)
        return BadLine("no JSON object", f"holds a JSON {kind}; expected an object with keys")
    texts: dict[str, list[str]] = {}
    for field, key in keys.items():
        if key not in value:
            listed = ", ".join(map(shown, list(value)[:8]))
            return BadLine(
                "missing key", f"has no key {key!r} ({setting(field)}); its keys are {listed}"
            )
        content, single = value[key], field == "label" or field.startswith(KEEP)
        if single and isinstance(content, int | float):
            content = json.dumps(content)
        many: list[Any] = content if isinstance(content, list) and not single else [content]
        if not all(isinstance(item, str) for item in many):
            expected = "a string" if single else "a string or a list of strings"
            kind = next(_type_of(item) for item in many if not isinstance(item, str))
            return BadLine("wrong type", f"key {key!r} holds a {kind}; expected {expected}")
        if not many:
            return BadLine("empty", f"key {key!r} holds an empty list; expected a text")
        texts[field] = many
    between = {"source": f" {reader.turns} "} if reader.turns else {}
    joined = {field: between.get(field, " ").join(many) for field, many in texts.items()}
    if out := reader.left_out(joined):
        return out
    rest = {field: joined[field] for field in reader.fields if field != "text"}
    return [Example(text, **rest) for text in texts["text"]]


def _type_of(value: object) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    kinds[dict] = "object"
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _checked(example: Example, reader: Reader) -> Iterator[Example | BadLine]:
    """Yields the cleaned texts of an example, or its fault."""
    label = source = ""
    if reader.label:
        label = clean(example.label, "expected one for every text")
        if isinstance(label, BadLine):
            yield BadLine(f"{label.reason} label", f"{label.reason} label: {label.detail}")
            return
    if reader.source:
        source = _bounded(example.source, reader)
        if isinstance(source, BadLine):
            yield BadLine(source.reason, f"its source: {source.detail}")
            return
        if reader.source_words:
            source = " ".join(source.split(" ")[-reader.source_words :])
    text = _bounded(example.text, reader)
    if isinstance(text, BadLine):
        yield text
        return
    for sentence in split_sentences(text) if reader.sentences else (text,):
        words = len(sentence.split()) + len(source.split())
        if reader.max_words is not None and words > reader.max_words:
            whose = " with its source" if source else ""
            detail = f"{words} words{whose}, over the limit of {reader.max_words}"
            yield BadLine("too many words", detail)
        else:
            yield Example(sentence, source, label)


def _bounded(text: str, reader: Reader) -> str | BadLine:
    cleaned = clean(text)
    if not isinstance(cleaned, BadLine) and len(cleaned) > reader.max_chars:
        detail = f"{len(cleaned)} characters, over the limit of {reader.max_chars}"
        return BadLine("too many characters", detail)
    return cleaned


# An empty suffix is for names such as "train".
READERS.register("text")(FileReader(_text_rows, (".txt", "")))
READERS.register("csv")(_table(""))
READERS.register("tsv")(_table("\t"))
READERS.register("jsonl")(FileReader(_jsonl_rows, (".jsonl", ".ndjson"), keeps=True))
READERS.register("json")(FileReader(_json_rows, (".json",), keeps=True))
READERS.register("parquet")(FileReader(_parquet_rows, (".parquet",), keeps=True))
