"""Reads the chosen columns of CSV and TSV files with the `csv` module, one row at a time.

Quotes    A field in double quotes follows CSV rules: delimiters and line ends inside it are text,
          and "" is a quote. A quote that opens a field but is not closed is a fault of its row;
          nothing is guessed. data.quotes=false treats quotes as ordinary characters. With
          data.on_error=drop, reading resumes at the next line.
Delimiter Tab in .tsv. In .csv a comma, unless the first rows agree on two or more columns by ; or
          tab or | and not by a comma.
Header    The first line names the columns if a column is chosen by name or data.header=true. With
          data.header=auto it also does if it looks like a header: distinct names, and either one
          of them is common (text, label, id, ...) or there are numbers below them.
Text      data.text, else the column named "text", else the only column. A file with several named
          columns but none named "text" is rejected; without a header the text is the last column.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice

from jvae.data.text_rules import BadLine, decode, shown
from jvae.errors import DataError

Raw = tuple[int, bytes | BadLine]
Row = tuple[int, dict[str, str] | BadLine]

_SAMPLE = 50  # lines used to detect delimiter and header
_DELIMITERS = ",;\t|"
_SPELT = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAME = re.compile(r"[^\W\d][\w.:/# -]{0,39}")
_USUAL = re.compile(
    r"texts?|sentence[12]?|labels?|id|idx|index|class|category|target|source|review|title"
    r"|question[12]?|premise|hypothesis|caption|comment|content|body|headline|document|summary"
    r"|stars|rating|score|sentiment|input|output|message"
)


KEEP = "keep "  # prefix of the fields for columns that data.keep tests


def setting(field: str) -> str:
    """The config key that chooses the column of a field."""
    return "data.keep" if field.startswith(KEEP) else f"data.{field}"


class Table:
    """The rows of one file.

    Args:
      name: name of the file, for messages.
      raw: its numbered lines.
      chosen: column by field (text, source, label, names that begin with `KEEP`): a number
        from 0, negative from the end, or a name; empty for the default.
      delimiter: empty to detect it.
      header: auto, true or false.
      quotes: whether quotes enclose fields.
      most: maximum characters per field.
    """

    def __init__(
        self,
        name: str,
        raw: Iterable[Raw],
        chosen: Mapping[str, str],
        *,
        delimiter: str,
        header: str,
        quotes: bool,
        most: int,
    ) -> None:
        self._name, self._chosen, self._most = name, chosen, most
        self._raw = iter(raw)
        sample = list(islice(self._raw, _SAMPLE))
        self._raw = chain(sample, self._raw)
        self._delimiter = delimiter or _delimiter(sample, quotes, most)
        self._quotes = quotes
        first = [row for _, row in self._parse(iter(sample)) if not isinstance(row, BadLine)]
        self._width = len(first[0]) if first else 0
        self.header = header == "true" or any(key and not is_number(key) for key in chosen.values())
        if header == "auto" and not self.header:
            self.header = bool(first) and _is_header(first[0], first[1:])
        self._place = self._columns(first[0]) if first else {}

    @property
    def note(self) -> str:
        """The detected layout and columns, for the log."""
        parts = [] if self._delimiter in ",\t" else [f"columns at {_SPELT[self._delimiter]}"]
        parts.append("the first line names the columns" if self.header else "no header")
        for field, place in self._place.items():
            parts.append(f"{setting(field).removeprefix('data.')} is column {place}")
        key = "" if self.header else " (data.header=true if the first line names columns)"
        return f"read as a table: {', '.join(parts)}{key}"

    def __iter__(self) -> Iterator[Row]:
        """Yields (number of a row's first line, its columns by field or its fault)."""
        header = self.header
        for number, row in self._parse(self._raw):
            if isinstance(row, BadLine):
                yield number, row
            elif header:
                header = False
            elif len(row) != self._width:
                detail = f"{len(row)} columns, but the file's first line has {self._width}"
                yield number, BadLine("wrong number of columns", detail)
            else:
                yield number, {field: row[i] for field, i in self._place.items()}

    def _parse(self, raw: Iterator[Raw]) -> Iterator[tuple[int, list[str] | BadLine]]:
        width = 0
        for number, lines, row in _records(raw, self._delimiter, self._quotes, self._most):
            # Tabs are rare in text: lines with a row's number of tabs are rows, not one field.
            joined = len(lines) > 1 and self._delimiter == "\t" and width > 1
            if joined and all(line.count("\t") == width - 1 for line in lines):
                row = _unclosed("spans lines that are rows of their own")
            width = width or (len(row) if isinstance(row, list) else 0)
            yield number, row

    def _columns(self, first: list[str]) -> dict[str, int]:
        names = [cell.strip() for cell in first] if self.header else []
        listed = ", ".join(map(shown, names[:8])) + (", ..." if len(names) > 8 else "")
        places = {}
        for field, key in self._chosen.items():
            if not key and len(first) > 1 and self.header and "text" not in names:
                raise DataError(
                    f"{self._name}: has the columns {listed}; set data.{field} to the one that "
                    f"holds the {field}"
                )
            if not key:
                places[field] = names.index("text") if "text" in names else len(first) - 1
            elif is_number(key):
                places[field] = self._at(field, int(key))
            elif names.count(key) == 1:
                places[field] = names.index(key)
            else:
                problem = "names several such columns" if key in names else "names no such column"
                raise DataError(
                    f"{self._name}: {setting(field)}={key}, but its first line {problem}; it reads "
                    f"{listed}"
                )
        return places

    def _at(self, field: str, place: int) -> int:
        if not -self._width <= place < self._width:
            raise DataError(
                f"{self._name}: {setting(field)}={place}, but its first line has {self._width} "
                f"columns; expected 0 to {self._width - 1}. Columns are separated by "
                f"{_SPELT[self._delimiter]}"
            )
        return place % self._width


def _records(
    raw: Iterator[Raw], delimiter: str, quotes: bool, most: int
) -> Iterator[tuple[int, list[str], list[str] | BadLine]]:
    """Yields (number of the first line, lines, columns or fault) for each row."""
    pulled: list[str] = []
    fault: BadLine | None = None
    first = 0

    def lines() -> Iterator[str]:
        nonlocal first, fault
        for number, content in raw:
            first = first if pulled else number
            line = decode(content) if isinstance(content, bytes) else content
            if isinstance(line, BadLine):  # its quotes still matter
                fault, line = (
                    line,
                    content.decode("utf-8", "replace") if isinstance(content, bytes) else "",
                )
            line = line.rstrip("\r\n")
            pulled.append(line)
            yield line + "\n"

    reader = csv.reader(
        lines(),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    row: list[str] | BadLine
    while True:
        try:
            with _limit(4 * most + 64):
                row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "limit" in str(error):
                row = BadLine("too many characters", f"a field has over {most} characters")
            else:
                row = _unclosed("is not closed by the next one")
        if fault:
            row = fault
        elif not any(text.strip() for text in pulled):
            row = BadLine("empty", "empty line; expected columns")
        yield first, pulled, row
        pulled, fault = [], None


@contextmanager
def _limit(most: int) -> Iterator[None]:
    """Sets the `csv` module's process-wide field size limit while one row is read."""
    before = csv.field_size_limit(most)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _unclosed(what: str) -> BadLine:
    detail = (
        f'a quote at the beginning of a field {what}; write quotes inside quoted fields as "", or '
        "set data.quotes=false to treat quotes as ordinary characters"
    )
    return BadLine("unbalanced quotes", detail)


def _delimiter(sample: list[Raw], quotes: bool, most: int) -> str:
    for delimiter in _DELIMITERS:
        rows = [row for _, _, row in _records(iter(sample), delimiter, quotes, most)]
        widths = {len(row) for row in rows if not isinstance(row, BadLine)}
        if len(widths) == 1 and min(widths) > 1:
            return delimiter
    return ","


def _is_header(first: list[str], rest: list[list[str]]) -> bool:
    names = [cell.strip() for cell in first]
    filled = [name for name in names if name]  # an index column often has no name
    if not filled or len(set(names)) < len(names) or not all(map(_NAME.fullmatch, filled)):
        return False
    if any(_USUAL.fullmatch(name.lower()) for name in filled):
        return True
    rows = [row for row in rest if len(row) == len(first)]
    return bool(rows) and any(all(_numeric(row[i]) for row in rows) for i in range(len(first)))


def _numeric(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?\d{1,30}(\.\d{0,30})?\s*", text))


def is_number(key: str) -> bool:
    """Whether a column is chosen by number."""
    return bool(re.fullmatch(r"-?[0-9]{1,6}", key))
