"""Removes from a BPE tokenizer the tokens that a text does not use.

All single symbols and added tokens stay, so any text can still be encoded, and so do all tokens
that occur while the given text is being merged, so that its encoding stays the same. Other texts
may need more tokens.
"""

import itertools
import json
from collections.abc import Iterable

from tokenizers import Tokenizer

from jvae.data.tokenizers import TextTokenizer
from jvae.errors import DataError

BATCH = 10_000  # texts that are encoded together


def trim(tokenizer: TextTokenizer, texts: Iterable[str]) -> tuple[TextTokenizer, list[int]]:
    """Removes the tokens that no text needs.

    Returns: the smaller tokenizer and, for each of its ids, the old one, in ascending order.
    Raises: DataError for a tokenizer that is not BPE.
    """
    tree = json.loads(tokenizer.backend.to_str())
    model, added = tree["model"], tree["added_tokens"]
    if (kind := model["type"]) != "BPE":
        raise DataError(
            f"{tokenizer.name}: its vocabulary is {kind}; only that of a BPE tokenizer can be "
            "trimmed, so use this one untrimmed"
        )
    token_of = {number: token for token, number in model["vocab"].items()}
    pairs = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]
    ]
    always = {token["id"] for token in added}
    # An added token can also be the result of a merge.
    used = {token_of[i] for i in _used(tokenizer, texts) | always if i in token_of}
    needed = _with_parts(used | {token for token in model["vocab"] if _single(token)}, pairs)
    ids = sorted({model["vocab"][token] for token in needed} | always)
    new = {old: i for i, old in enumerate(ids)}
    vocab = {token_of[old]: new[old] for old in ids if old in token_of}
    merges = [(a, b) for a, b in pairs if a + b in vocab]
    tree["model"] = model | {"vocab": vocab, "merges": merges}
    tree["added_tokens"] = [token | {"id": new[token["id"]]} for token in added]
    tree["post_processor"] = _renumbered(tree["post_processor"], new)
    backend = Tokenizer.from_str(json.dumps(tree))
    return tokenizer.with_backend(backend), ids


def _used(tokenizer: TextTokenizer, texts: Iterable[str]) -> set[int]:
    used, left = set[int](), iter(texts)
    while batch := list(itertools.islice(left, BATCH)):
        used.update(*(ids.tolist() for ids in tokenizer.encode_batch(batch)))
    return used


def _with_parts(tokens: set[str], merges: list[tuple[str, ...]]) -> set[str]:
    """The tokens and all that they are merged from."""
    parts: dict[str, list[str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, []).extend((a, b))
    kept, left = set[str](), list(tokens)
    while left:
        token = left.pop()
        if token not in kept:
            kept.add(token)
            left.extend(parts.get(token, ()))
    return kept


def _single(token: str) -> bool:
    """Whether a token is one symbol, or a byte that stands for part of an unknown one (<0x0A>)."""
    return len(token) == 1 or (len(token) == 6 and token.startswith("<0x") and token[-1] == ">")


def _renumbered(node: object, new: dict[int, int]) -> object:
    """A post-processor with the new ids of its special tokens."""
    if isinstance(node, list):
        return [_renumbered(child, new) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: [new[i] for i in value] if key == "ids" else _renumbered(value, new)
        for key, value in node.items()
    }
