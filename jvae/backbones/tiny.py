"""Sizes with a few hundred parameters, for the test configs of all backbones."""

from typing import Any


def transformer(vocab: int, **changes: Any) -> dict[str, Any]:
    """Two layers, with padded vocabulary columns and several vocabulary chunks."""
    sizes: dict[str, Any] = dict(layers=2, width=16, heads=2, mlp=32, vocab=vocab, positions=16)
    sizes |= dict(vocab_multiple=8, xent_chunk=10)
    return sizes | changes
