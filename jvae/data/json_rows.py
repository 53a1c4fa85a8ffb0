"""Reads values from JSON Lines and JSON arrays, each with the line on which it begins."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jvae.data.text_rules import BadLine, decode
from jvae.errors import DataError

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")


def from_lines(raw: Iterable[tuple[int, bytes | BadLine]]) -> Iterator[tuple[int, Any]]:
    """Yields (line number, value or fault) for JSON Lines."""
    for number, content in raw:
        line = decode(content) if isinstance(content, bytes) else content
        if isinstance(line, BadLine):
            yield number, line
        elif not (line := line.strip()):
            yield number, BadLine("empty", "empty line; expected a JSON object")
        else:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                value = BadLine("invalid JSON", _reason(error))
            yield number, value


def from_array(name: str, raw: bytes) -> Iterator[tuple[int, object]]:
    """Yields (number of its first line, value) for each entry of one JSON array.

    Raises: DataError naming file and line unless the bytes are such an array. Reading cannot resume
      after a damaged entry, so this is an error with data.on_error=drop too.
    """
    text = decode(raw)
    if isinstance(text, BadLine):
        raise DataError(f"{name}: {text.detail}; a JSON file is UTF-8 text")
    if not text.strip():
        raise DataError(f"{name}: is empty; expected one array of strings or objects")
    line, counted = 1, 0

    def fault(place: int, what: str) -> DataError:
        return DataError(f"{name}:{line + text.count(chr(10), counted, place)}: {what}")

    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        raise fault(place, _not_an_array(text, place))
    place = _skip(text, place + 1)
    if text[place : place + 1] == "]":
        raise fault(place, "holds an empty array; expected one of strings or objects")
    while True:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise fault(getattr(error, "pos", place), _reason(error)) from None
        yield line, value
        place = _skip(text, place)
        after = text[place : place + 1]
        place = _skip(text, place + 1)
        if after == "]" and place == len(text):
            return
        if after != ",":
            raise fault(
                place, "not valid JSON (expected a comma, or the closing ] at the end of the file)"
            )


def _skip(text: str, place: int) -> int:
    return _BLANKS.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]


def _not_an_array(text: str, place: int) -> str:
    try:
        value, place = _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        return _reason(error)
    if _skip(text, place) < len(text):
        return "holds several JSON values; name it .jsonl if each line is one (data.format=jsonl)"
    kind = "object" if isinstance(value, dict) else "value"
    return f"holds one JSON {kind}; expected an array of strings or objects"


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return "not usable JSON (a number with thousands of digits)"
