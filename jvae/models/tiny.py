"""Stacks of a few hundred parameters, for the configs that every family brings for the suites."""

from typing import Any

from jvae.nn.config import TransformerConfig
from jvae.nn.lstm import LstmConfig


def transformer(vocab: int, **changes: Any) -> TransformerConfig:
    """Two layers whose vocabulary has padded columns and is walked in several chunks."""
    sizes: dict[str, Any] = dict(layers=2, width=16, heads=2, mlp=32, vocab=vocab, positions=16)
    sizes |= dict(vocab_multiple=8, xent_chunk=10)
    return TransformerConfig(**(sizes | changes))


def lstm(vocab: int, dtype: str = "float32", **changes: Any) -> LstmConfig:
    """The same for an LSTM, which has no layers to rematerialise or unroll."""
    del changes
    return LstmConfig(width=6, hidden=10, vocab=vocab, vocab_multiple=8, xent_chunk=10, dtype=dtype)
