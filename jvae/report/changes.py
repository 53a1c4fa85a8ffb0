"""Marks the words in which a sentence differs from the one above it."""

from collections.abc import Sequence
from difflib import SequenceMatcher


def changes(block: Sequence[str]) -> list[list[bool]]:
    """For each word of each row, whether it is new compared with an alignment to the row above."""
    rows = [text.split(" ") for text in block]
    marks = [[False] * len(row) for row in rows]
    for above, row, mark in zip(rows, rows[1:], marks[1:], strict=False):
        for tag, _, _, begin, end in SequenceMatcher(None, above, row, False).get_opcodes():
            if tag in ("replace", "insert"):
                mark[begin:end] = [True] * (end - begin)
    return marks
