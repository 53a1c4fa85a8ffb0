"""Input of the text modes: sentences from a file or standard input, and latents.

Sentences follow the rules of corpora (`jvae.data.text_rules`). Files are read like corpora, with
the columns that the run was trained on. For conditional models, plain lines are source<TAB>text.
"""

import sys
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from jvae.data import json_rows, sources
from jvae.data.formats import Example, Reader, scan
from jvae.data.text_rules import BadLine, clean, decode
from jvae.errors import ConfigError, DataError

MAX_CHARS = 1_000_000  # longest line of input
STANDARD_INPUT = "standard input"


def reader_of(data: ConfigDict, sources_alone: bool = False) -> Reader:
    """The reader for files as configured by a run's data section, without labels.

    Args:
      sources_alone: read sources instead of texts.
    """
    text, source = (data.source, "") if sources_alone else (data.text, data.source)
    return Reader(text=text, source=source, header=data.header, quotes=data.quotes)


def from_file(path: str, reader: Reader) -> list[str]:
    """The sentences of a file; source<TAB>text if the reader has a source.

    Raises: DataError naming the file and line that cannot be used.
    """
    path = str(sources.expand_user(path))
    if reader.format_of(path) == "text":
        reader = Reader()
    lines = []
    for number, entry in scan(path, reader):
        if isinstance(entry, BadLine):
            raise DataError(f"{path}:{number}: {entry.detail}")
        if isinstance(entry, Example):
            lines.append(f"{entry.source}\t{entry.text}" if reader.source else entry.text)
    return lines


def from_standard_input(what: str) -> list[str]:
    """The lines of standard input.

    Args:
      what: purpose of the lines, for messages: "to MODE", or what is needed.
    Raises: ConfigError if there are none; DataError naming a line that cannot be used.
    """
    lines = []
    for number, raw in _standard_input(what):
        line = decode(raw) if isinstance(raw, bytes) else raw
        line = clean(line) if isinstance(line, str) else line
        if isinstance(line, BadLine):
            raise DataError(f"{STANDARD_INPUT}:{number}: {line.detail}")
        lines.append(line)
    return lines


def latents(path: str) -> np.ndarray:
    """Reads latents from an .npz file, or from JSON lines as written by mode encode; from standard
    input if `path` is empty. All have the same shape, which is not checked further.

    Raises: DataError naming the file and, for JSON, the line.
    """
    if path.endswith(".npz"):
        file = sources.expand_user(path)
        sources.check_file(file)
        try:
            with file.open("rb") as opened, np.load(opened) as arrays:
                return arrays["z"]
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: not a latent ({error}); expected an .npz with array z, as --mode=encode "
                "writes"
            ) from None
    raw: Iterable[tuple[int, bytes | BadLine]] = (
        sources.raw_lines(sources.expand_user(path), MAX_CHARS)
        if path
        else _standard_input("to decode")
    )
    rows = []
    for number, value in json_rows.from_lines(raw):
        try:
            if isinstance(value, BadLine):
                raise ValueError(value.detail)
            rows.append(np.array(value["z"], np.float32))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(
                f"{path or STANDARD_INPUT}:{number}: not a latent ({error}); expected a JSON "
                "object with key z, as --mode=encode writes"
            ) from None
        if rows[-1].shape != rows[0].shape:
            raise DataError(
                f"{path or STANDARD_INPUT}:{number}: latents of shape {rows[-1].shape}; those of "
                f"the first line have {rows[0].shape}"
            )
    return np.stack(rows)


def _standard_input(what: str) -> Iterator[tuple[int, bytes | BadLine]]:
    number = 0
    if sys.stdin is not None:
        for number, line in sources.split_lines(sys.stdin.buffer, MAX_CHARS):
            yield number, line
    if not number:
        what = f"nothing {what}" if what.startswith("to ") else f"{what} is needed"
        raise ConfigError(f"{what}: give --text='...', --input=FILE or lines on standard input")
