"""Tokenisation and its checks, shared by texts in memory and files prepared in shards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import __version__ as tokenizers_version

from jvae.data.kept import Arrays, digest, kept
from jvae.data.rows import Encoded
from jvae.data.text_rules import BadLine
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError

_FORMAT = 1  # increase when the tokens of a text change, or how they are kept
TOO_LONG = "too many tokens"  # the reason for a text with more tokens than a side's limit
UNKNOWN_WARNING = 0.01  # share of unknown tokens above which a run warns


def special_tokens(tokenizer: TextTokenizer) -> int:
    """Number of special tokens around every example."""
    return 1 if tokenizer.start_id is None else 2


def encode(
    texts: Mapping[str, Sequence[str]],
    tokenizers: Mapping[str, TextTokenizer],
    limits: Mapping[str, int],
    joined: Sequence[str] = (),
    cache: Path | None = None,
) -> tuple[dict[str, Encoded], dict[int, BadLine]]:
    """Tokenises the texts of every side; sides with the same texts and tokenizer only once.

    A joined side is `source end text end`, and `cond` is then `source end`, the prefix of such a
    side. Neither has a start id, as the first token of a source is not predicted.

    Args:
      texts: texts per side; those of `cond` are the sources.
      limits: maximum tokens per example and side, including special tokens.
      joined: sides that have the source in front of the text.
      cache: folder that keeps the tokens for later calls.
    Returns: the encoded sides, and the faults of unusable examples by index.
    Raises: ConfigError if a joined side and `cond` have different tokenizers.
    """
    sides: dict[str, Encoded] = {}
    faults: dict[int, BadLine] = {}
    known: dict[tuple[int, str], Encoded] = {}
    for side, tokenizer in tokenizers.items():
        key = (id(texts[side]), tokenizer.coding)
        if key not in known:
            known[key] = _tokens(texts[side], tokenizer, cache)
        sides[side] = known[key]
        for i, fault in _content_faults(sides[side], tokenizer, texts[side]):
            faults.setdefault(i, fault)
    if joined:
        source = sides["cond"] = _without_start(sides["cond"], tokenizers["cond"])
        for side in set(joined) & set(sides):
            _check_one_tokenizer(side, tokenizers[side], tokenizers["cond"])
            text = _without_start(sides[side], tokenizers[side])
            pairs = [np.append(source.tokens(i), text.tokens(i)) for i in range(len(text.lengths))]
            sides[side] = Encoded.of(pairs)
    for side, limit in limits.items():
        if side in sides:
            for i, fault in _length_faults(side, sides[side], tokenizers[side], limit):
                faults.setdefault(i, fault)
    return sides, faults


def _tokens(texts: Sequence[str], tokenizer: TextTokenizer, cache: Path | None) -> Encoded:
    def tokens() -> Arrays:
        encoded = Encoded.of(tokenizer.encode_batch(texts))
        return {"flat": encoded.flat, "offset": encoded.offset}

    if cache is None:
        return Encoded(**tokens())
    how = f"{_FORMAT} {tokenizers_version} {tokenizer.coding}"
    name = digest(how, json.dumps(list(texts)))
    return Encoded(**kept(cache / "tokens" / name, tokens))


def _without_start(encoded: Encoded, tokenizer: TextTokenizer) -> Encoded:
    if tokenizer.start_id is None:
        return encoded
    keep = np.ones(len(encoded.flat), bool)
    keep[encoded.offset[:-1]] = False
    return Encoded(encoded.flat[keep], encoded.offset - np.arange(len(encoded.offset)))


def _check_one_tokenizer(side: str, tokenizer: TextTokenizer, source: TextTokenizer) -> None:
    if tokenizer.fingerprint != source.fingerprint:
        raise ConfigError(
            f"data.encoder_tokenizer is {source.name} and data.decoder_tokenizer {tokenizer.name}, "
            f"but the {side} side of this model holds the source too; give both the same"
        )


def _content_faults(
    encoded: Encoded, tokenizer: TextTokenizer, texts: Sequence[str]
) -> Iterator[tuple[int, BadLine]]:
    """Yields examples without tokens, or with a control token inside."""
    special, special_e = special_tokens(tokenizer), special_tokens(tokenizer)
    if tokenizer.turns:
        turns_e = np.array([len(tokenizer.turns_of(text)) for text in texts])
        special_e = special + turns_e - 1
    lengths = encoded.lengths
    control = np.isin(encoded.flat, tokenizer.control_ids)
    control_e = np.add.reduceat(control, encoded.offset[:-1]) if len(lengths) else lengths
    bare = lengths <= special_e
    spelt = control_e > special_e
    for i in np.flatnonzero(bare | spelt).tolist():
        if bare[i]:
            yield i, BadLine("no tokens", f"gives no tokens with tokenizer {tokenizer.name}")
        else:
            inside = encoded.tokens(i)[special - 1 : -1]
            token = tokenizer.backend.id_to_token(
                int(inside[np.isin(inside, tokenizer.control_ids)][0])
            )
            detail = f"spells the special token {token!r} of tokenizer {tokenizer.name}"
            yield i, BadLine("special token", detail)


def _length_faults(
    side: str, encoded: Encoded, tokenizer: TextTokenizer, limit: int
) -> Iterator[tuple[int, BadLine]]:
    lengths = encoded.lengths
    for i in np.flatnonzero(lengths > limit).tolist():
        detail = (
            f"{lengths[i]} tokens with tokenizer {tokenizer.name}, "
            f"more than the {limit} that the model has positions for ({side} side)"
        )
        yield i, BadLine(TOO_LONG, detail)


def texts_of(
    side: str, texts: Sequence[str], sources: Sequence[str], joined: Sequence[str]
) -> Sequence[str]:
    """The texts that a side's tokens stand for; on a joined side, source and text."""
    if side == "cond":
        return sources
    if side in joined:
        return [f"{source} {text}" for source, text in zip(sources, texts, strict=True)]
    return texts


def unknown_tokens(encoded: Encoded, tokenizer: TextTokenizer, texts: Sequence[str]) -> int:
    """Number of unknown tokens, not counting literal unknown markers in the texts."""
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
      tokens: number of tokens in all examples, including special tokens.
      names: the files they come from.
    """
    share = unknown / max(tokens - special_tokens(tokenizer) * examples, 1)
    if share <= UNKNOWN_WARNING:
        return None
    return (
        f"{', '.join(names)}: {share:.1%} of the tokens are unknown to tokenizer {tokenizer.name} "
        f"({tokenizer.vocab_size} entries); use one that fits the text, or a larger vocabulary"
    )
