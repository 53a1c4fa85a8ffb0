"""Sizes of a few hundred parameters, for the configs that every backbone brings for the suites."""

from typing import Any


def transformer(vocab: int, **changes: Any) -> dict[str, Any]:
    """Two layers whose vocabulary has padded columns and is walked in several chunks."""
    sizes: dict[str, Any] = dict(layers=2, width=16, heads=2, mlp=32, vocab=vocab, positions=16)
    sizes |= dict(vocab_multiple=8, xent_chunk=10)
    return sizes | changes
