"""Normalisation rules for a text, shared by corpus files, the API and the shell.

  NUL and lone surrogates   rejected
  byte order marks          removed at the start of a text or of a line in it
  separators inside         \\n \\r \\v \\f, FS GS RS, NEL (U+0085), U+2028 and U+2029: each run
                            becomes one space, together with the whitespace around it
  whitespace around a text  removed (all Unicode whitespace)
  anything else             kept, including whitespace between words

The same sentences thus give the same lines from files of any format. Plain-text and JSON lines end
at \\n, \\r\\n or \\r only; quoted fields and JSON strings may contain line ends.
"""

import re
from typing import NamedTuple

BOM = "\ufeff"
_BEFORE = re.compile(r"[\s\ufeff]*")
_SEPARATOR = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


class BadLine(NamedTuple):
    """Why a text cannot be used: a reason for counting, and details for the message."""

    reason: str
    detail: str


def decode(raw: bytes) -> str | BadLine:
    """Decodes a line and removes leading byte order marks.

    Files joined with `cat` have such marks in the middle, so any line may begin with one.
    """
    try:
        return raw.decode("utf-8").lstrip(BOM)
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return BadLine("invalid UTF-8", f"not valid UTF-8 ({where})")


def clean(text: str, empty: str = "empty line; expected a sentence") -> str | BadLine:
    """Applies the rules above to a text, in linear time; returns a fault if it cannot be used.

    Args:
      empty: the message for a text that consists of whitespace only.
    """
    if "\0" in text:
        return BadLine("NUL", f"holds a NUL character at column {text.index(chr(0)) + 1}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON and Python strings may contain lone surrogates
            return BadLine("invalid UTF-8", "holds half of a surrogate pair")
    text = _bare(text)
    if _SEPARATOR.search(text):
        text = " ".join(part for piece in _SEPARATOR.split(text) if (part := _bare(piece)))
    return text or BadLine("empty", empty)


def _bare(text: str) -> str:
    text = text.rstrip()
    return text[_BEFORE.match(text).end() :]  # pyright: ignore[reportOptionalMemberAccess]


def shown(text: str, most: int = 40) -> str:
    """Formats a name or key from a file for a message: quoted, short and printable."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."
