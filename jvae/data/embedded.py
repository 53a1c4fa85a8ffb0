"""The embedded corpus as read by runs: drawn once, then read from the cache of prepared data."""

import functools
import hashlib
import inspect
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.data import grammar, lexicon
from jvae.data.kept import Arrays, kept

_FORMAT = 1  # increase when the stored content changes


class Split(NamedTuple):
    """Sentences and the exact log-probability of each in nats."""

    texts: list[str]
    log_prob_n: Float[np.ndarray, "n"]


def split(name: str, n: int, cache: Path) -> Split:
    """The texts of `grammar.corpus(name, n)`, read from the cache, or drawn and cached."""
    arrays = kept(cache / "embedded" / f"{name}-{n}-{_grammar()}", lambda: _drawn(name, n))
    return Split(arrays["text"].tobytes().decode().split("\n"), arrays["log_prob_n"])


def _drawn(name: str, n: int) -> Arrays:
    sentences = grammar.corpus(name, n)
    text = "\n".join(sentence.text for sentence in sentences)
    return {
        "text": np.frombuffer(text.encode(), np.uint8),
        "log_prob_n": np.array([sentence.log_prob for sentence in sentences]),
    }


@functools.cache
def _grammar() -> str:
    """A digest of the source code that draws the corpus, so that changing it redraws the corpus."""
    digest = hashlib.sha256(b"%d" % _FORMAT)
    for module in (grammar, lexicon):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
