"""The small stack that stands for each role in the configs that families bring for the suites."""

from typing import Any

# Imported to register themselves.
from jvae.backbones import bert, gpt2, lstm, t5  # noqa: F401  # pyright: ignore
from jvae.nn.backbone import BACKBONES

ENCODER, DECODER, RECURRENT, PAIR = "bert", "gpt2", "lstm", "t5"


def encoder(vocab: int, **changes: Any) -> Any:
    """A stack that reads alone."""
    return BACKBONES[ENCODER].tiny(vocab, **changes)


def decoder(vocab: int, **changes: Any) -> Any:
    """A stack with caches of keys and values."""
    return BACKBONES[DECODER].tiny(vocab, **changes)


def recurrent(vocab: int, **changes: Any) -> Any:
    """A stack with a hidden state."""
    return BACKBONES[RECURRENT].tiny(vocab, **changes)


def pair(vocab: int, **changes: Any) -> Any:
    """A stack that comes as encoder and decoder around one embedding."""
    return BACKBONES[PAIR].tiny(vocab, **changes)
