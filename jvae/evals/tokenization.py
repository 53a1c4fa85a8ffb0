"""What tokenization loses of the evaluated text.

Both losses distort the comparison of models: unknown tokens make a sentence easier to predict, and
a sentence that its tokenizer does not round-trip cannot be reconstructed exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jvae.data.dataset import Dataset
from jvae.data.encode import special_tokens
from jvae.data.tokenizers import TextTokenizer
from jvae.runs.workdir import one_line

UNKNOWN_LIMIT_PCT = 2.0  # above this, perplexities per word and bits per character are withheld


class Unknown(NamedTuple):
    """Unknown tokens on one side of some sentences; shares in %."""

    tokens_pct: float  # share of all tokens except special ones
    sentences_pct: float  # share of sentences with at least one

    @property
    def misleading(self) -> bool:
        """Whether there are too many unknown tokens for the likelihood to be meaningful."""
        return self.tokens_pct > UNKNOWN_LIMIT_PCT


def unknown(
    data: Dataset, side: str, tokenizer: TextTokenizer, ids: Int[np.ndarray, "e"]
) -> Unknown:
    """Unknown tokens of the sentences `ids` on one side (`dec` or `enc`).

    Source prefixes do not count, nor do markers such as <unk> in the text itself.
    """
    if tokenizer.unk_id is None:
        return Unknown(0.0, 0.0)
    encoded = data.sides[side].take(ids)
    lengths_e = encoded.lengths
    source_e = np.zeros(len(ids), np.int64)
    special = special_tokens(tokenizer)
    if side in data.joined and data.cond is not None:
        source_e, special = np.asarray(data.cond.lengths)[ids], 1  # no start token after a source
    place = np.arange(len(encoded.flat)) - np.repeat(encoded.offset[:-1], lengths_e)
    hit = (encoded.flat == tokenizer.unk_id) & (place >= np.repeat(source_e, lengths_e))
    unknown_e = np.add.reduceat(hit, encoded.offset[:-1], dtype=np.int64)
    for e in np.flatnonzero(unknown_e):  # texts may be on disk
        unknown_e[e] -= _spelt(data.texts[int(ids[e])], tokenizer)
    return _shares(unknown_e, lengths_e - source_e - special)


def unknown_in(texts: Sequence[str], tokenizer: TextTokenizer) -> Unknown:
    """Unknown tokens of texts that are not part of a data set."""
    if tokenizer.unk_id is None or not texts:
        return Unknown(0.0, 0.0)
    ids = tokenizer.encode_batch(texts)
    unknown_e = np.array([np.sum(line_ids == tokenizer.unk_id) for line_ids in ids])
    unknown_e -= [_spelt(text, tokenizer) for text in texts]
    return _shares(
        unknown_e, np.array([len(line_ids) for line_ids in ids]) - special_tokens(tokenizer)
    )


def _spelt(text: str, tokenizer: TextTokenizer) -> int:
    """How often the text itself contains the marker of an unknown token."""
    marker = tokenizer.backend.id_to_token(tokenizer.unk_id) if tokenizer.unk_id is not None else ""
    return text.count(marker) if marker else 0


def _shares(unknown_e: np.ndarray, tokens_e: np.ndarray) -> Unknown:
    # A marker inside a longer word is not always a token of its own.
    unknown_e = np.maximum(unknown_e, 0)
    share = float(unknown_e.sum() / max(int(tokens_e.sum()), 1))
    return Unknown(100.0 * share, 100.0 * float(np.mean(unknown_e > 0)))


def round_trip(texts: Sequence[str], tokenizer: TextTokenizer) -> list[str]:
    """Encodes and decodes each text: what a perfect model would print."""
    return [one_line(tokenizer.decode(ids)) for ids in tokenizer.encode_batch(texts)]
