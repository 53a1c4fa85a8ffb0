"""The rules for one text, the same for corpus files, the API and the shell.

  NUL and lone surrogates   refused
  byte order marks          removed where a text or a line of it begins
  separators inside         \\n \\r \\v \\f, FS GS RS, NEL (U+0085), U+2028 and U+2029: each run
                            becomes one space, together with the blanks around it
  blanks around a text      removed (all Unicode whitespace)
  anything else             kept, blanks between words included

So the same sentences give the same lines from a file of any format. Plain text and JSON lines end
at \\n, \\r\\n or \\r and nowhere else; quoted fields and JSON strings may hold line ends.
"""

import re
from typing import NamedTuple

BOM = "\ufeff"
_BEFORE = re.compile(r"[\s\ufeff]*")
_SEPARATOR = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


class BadLine(NamedTuple):
    """Why a text cannot be used: a reason to count by, and the particulars for the message."""

    reason: str
    detail: str


def decode(raw: bytes) -> str | BadLine:
    """A line of bytes as text, without the byte order marks it begins with.

    Files joined by `cat` carry such marks in the middle, so any line may begin with one.
    """
    try:
        return raw.decode("utf-8").lstrip(BOM)
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return BadLine("invalid UTF-8", f"not valid UTF-8 ({where})")


def clean(text: str, empty: str = "empty line; expected a sentence") -> str | BadLine:
    """A text by the rules above, or why it cannot be used. Linear in its length.

    Args:
      empty: what to say of a text of nothing but blanks.
    """
    if "\0" in text:
        return BadLine("NUL", f"holds a NUL character at column {text.index(chr(0)) + 1}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON and Python can spell what UTF-8 cannot
            return BadLine("invalid UTF-8", "holds half of a surrogate pair")
    text = _bare(text)
    if _SEPARATOR.search(text):
        text = " ".join(part for one in _SEPARATOR.split(text) if (part := _bare(one)))
    return text or BadLine("empty", empty)


def _bare(text: str) -> str:
    text = text.rstrip()
    return text[_BEFORE.match(text).end() :]  # pyright: ignore[reportOptionalMemberAccess]


def shown(text: str, most: int = 40) -> str:
    """A name or key of a file for a message: in quotes, short, printable everywhere."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."
