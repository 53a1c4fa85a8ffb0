"""Sentence pairs as one sequence of tokens: `start first end second end`, token types 0 and 1."""

from collections.abc import Sequence

import numpy as np

from jvae.data.encode import special_tokens
from jvae.data.rows import Encoded
from jvae.data.tokenizers import TextTokenizer


def encode_pairs(
    tokenizer: TextTokenizer,
    first: Sequence[str],
    second: Sequence[str] | None,
    limit: int,
) -> tuple[Encoded, int]:
    """Encodes single sentences or pairs, truncated to `limit`; also returns the number truncated.

    In a pair, the longer sentence is truncated first; end tokens are kept. Single sentences have no
    token types.
    """
    special = special_tokens(tokenizer)
    first_ids = tokenizer.encode_batch(first)
    if second is None:
        whole = [_cut(ids, limit) for ids in first_ids]
        return Encoded.of(whole), sum(
            len(a) != len(b) for a, b in zip(first_ids, whole, strict=True)
        )
    # Without a start id.
    second_ids = [ids[special - 1 :] for ids in tokenizer.encode_batch(second)]
    pairs, types, cut = [], [], 0
    for a, b in zip(first_ids, second_ids, strict=True):
        short = min(len(b), max(limit // 2, limit - len(a)))
        kept = _cut(a, limit - short), _cut(b, short)
        cut += sum(map(len, kept)) < len(a) + len(b)
        pairs.append(np.concatenate(kept))
        types.append(np.repeat(np.array([0, 1], np.int32), list(map(len, kept))))
    flat = np.concatenate(types) if types else np.zeros(0, np.int32)
    return Encoded.of(pairs)._replace(types=flat), cut


def _cut(ids: np.ndarray, limit: int) -> np.ndarray:
    """Truncates to `limit` tokens, keeping the end token."""
    return ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1:])
