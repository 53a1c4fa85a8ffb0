"""Tokenising and its checks, the same for texts in memory and for files prepared in parts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jvae.data.rows import Encoded
from jvae.data.sources import BadLine
from jvae.data.tokenizers import TextTokenizer

UNKNOWN_WARNING = 0.01  # share of unknown tokens above which a run says so


def special_tokens(tokenizer: TextTokenizer) -> int:
    """Special tokens around every example."""
    return 1 if tokenizer.start_id is None else 2


def encode(
    texts: Mapping[str, Sequence[str]],
    tokenizers: Mapping[str, TextTokenizer],
    limits: Mapping[str, int],
) -> tuple[dict[str, Encoded], dict[int, BadLine]]:
    """Tokenises the texts of every side.

    Args:
      limits: most tokens of an example per side, special ones included.
    Returns: the sides, and what is wrong with the examples that cannot be used, by index.
    """
    sides: dict[str, Encoded] = {}
    faults: dict[int, BadLine] = {}
    for side, tokenizer in tokenizers.items():
        sides[side] = Encoded.of(tokenizer.encode_batch(texts[side]))
        for i, fault in _faults(side, sides[side], tokenizer, limits.get(side)):
            faults.setdefault(i, fault)
    return sides, faults


def _faults(
    side: str, encoded: Encoded, tokenizer: TextTokenizer, limit: int | None
) -> Iterator[tuple[int, BadLine]]:
    """Examples that cannot be used: no tokens, a control token inside, or too many tokens."""
    special = special_tokens(tokenizer)
    lengths = encoded.lengths
    control = np.isin(encoded.flat, tokenizer.control_ids)
    control_e = np.add.reduceat(control, encoded.offset[:-1]) if len(lengths) else lengths
    bare = lengths <= special
    spelt = control_e > special
    over = np.zeros(len(lengths), bool) if limit is None else lengths > limit
    for i in np.flatnonzero(bare | spelt | over).tolist():
        if bare[i]:
            yield i, BadLine("no tokens", f"gives no tokens with tokenizer {tokenizer.name}")
        elif spelt[i]:
            inside = encoded.tokens(i)[special - 1 : -1]
            token = tokenizer.backend.id_to_token(
                int(inside[np.isin(inside, tokenizer.control_ids)][0])
            )
            detail = f"spells the special token {token!r} of tokenizer {tokenizer.name}"
            yield i, BadLine("special token", detail)
        else:
            detail = (
                f"{lengths[i]} tokens with tokenizer {tokenizer.name}, "
                f"more than the {limit} that the model has positions for ({side} side)"
            )
            yield i, BadLine("too many tokens", detail)


def unknown_tokens(encoded: Encoded, tokenizer: TextTokenizer, texts: Sequence[str]) -> int:
    """Tokens that the tokenizer does not know, markers that the texts spell left out."""
    if tokenizer.unk_id is None:
        return 0
    unknown = int((encoded.flat == tokenizer.unk_id).sum())
    marker = tokenizer.backend.id_to_token(tokenizer.unk_id) or ""
    return max(unknown - sum(text.count(marker) for text in texts), 0)


def unknown_note(
    unknown: int, tokens: int, examples: int, tokenizer: TextTokenizer, names: Sequence[str]
) -> str | None:
    """A warning if many of the tokens are unknown, else None.

    Args:
      tokens: of all examples, special ones included.
      names: the files they come from.
    """
    share = unknown / max(tokens - special_tokens(tokenizer) * examples, 1)
    if share <= UNKNOWN_WARNING:
        return None
    return (
        f"{', '.join(names)}: {share:.1%} of the tokens are unknown to tokenizer {tokenizer.name} "
        f"({tokenizer.vocab_size} entries); use one that fits the text, or a larger vocabulary"
    )
