"""What a split's lines are, whatever files they come from: one number per example, one hash of all.

A number is 64 bits of BLAKE2b of the text, its source and its label, as they are after the rules of
`jvae.data.text_rules`. Prepared corpora keep it as the column "digest".
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from jvae.data.dataset import Dataset

COLUMN = "digest"


def digest(text: str, source: str = "", label: str = "") -> int:
    """The number (int64) of one example."""
    # No text holds NUL, so where one field ends is certain.
    joined = f"{text}\0{source}\0{label}".encode()
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little", signed=True)


def digests(dataset: Dataset) -> np.ndarray:
    """The numbers of all examples of a split, (examples,) int64, in order."""
    if dataset.records is not None:
        return np.asarray(dataset.records.column(COLUMN), np.int64)
    lines, nothing = dataset.lines, [""] * len(dataset)
    every = zip(lines.text, lines.source or nothing, lines.label or nothing, strict=True)
    return np.array([digest(*one) for one in every], np.int64)


def sha256(digest_e: np.ndarray | Iterable[int]) -> str:
    """Hash of examples in their order, in hexadecimal: equal for equal lines, by any path and from
    any format.
    """
    return hashlib.sha256(np.asarray(digest_e, "<i8").tobytes()).hexdigest()
