"""The embedded corpus as read by runs: drawn once, then read from the cache of prepared data."""

import contextlib
import functools
import hashlib
import inspect
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.data import grammar, lexicon
from jvae.data.corpus import write_whole
from jvae.errors import DataError

_FORMAT = 1  # increase when the stored content changes


class Split(NamedTuple):
    """Sentences and the exact log-probability of each in nats."""

    texts: list[str]
    log_prob_n: Float[np.ndarray, "n"]


def split(name: str, n: int, cache: Path) -> Split:
    """The texts of `grammar.corpus(name, n)`, read from the cache, or drawn and cached.

    If the cache is damaged or cannot be written, the texts are drawn again.
    """
    path = cache / "embedded" / f"{name}-{n}-{_grammar()}.npz"
    if stored := _stored(path, n):
        return stored
    sentences = grammar.corpus(name, n)
    drawn = Split(
        [sentence.text for sentence in sentences],
        np.array([sentence.log_prob for sentence in sentences]),
    )
    text = np.frombuffer("\n".join(drawn.texts).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, text=text, log_prob_n=drawn.log_prob_n)
    with contextlib.suppress(DataError):
        write_whole(path, file.getvalue())
    return drawn


def _stored(path: Path, n: int) -> Split | None:
    """The split that an earlier run wrote; None if missing or damaged, by the archive's CRC."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            texts = arrays["text"].tobytes().decode().split("\n")
            stored = Split(texts, arrays["log_prob_n"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return stored if len(stored.texts) == len(stored.log_prob_n) == n else None


@functools.cache
def _grammar() -> str:
    """A digest of the source code that draws the corpus, so that changing it redraws the corpus."""
    digest = hashlib.sha256(b"%d" % _FORMAT)
    for module in (grammar, lexicon):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
