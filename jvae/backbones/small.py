"""Tiny stacks by role, for the test configs of model families."""

from typing import Any

# Imported to register themselves.
from jvae.backbones import bert, gpt2, lstm, t5  # noqa: F401  # pyright: ignore
from jvae.nn.backbone import BACKBONES

ENCODER, DECODER, RECURRENT, PAIR = "bert", "gpt2", "lstm", "t5"


def encoder(vocab: int, **changes: Any) -> Any:
    """A stack that is only an encoder."""
    return BACKBONES[ENCODER].tiny(vocab, **changes)


def decoder(vocab: int, **changes: Any) -> Any:
    """A decoder stack with key-value caches."""
    return BACKBONES[DECODER].tiny(vocab, **changes)


def recurrent(vocab: int, **changes: Any) -> Any:
    """A recurrent stack, with a hidden state."""
    return BACKBONES[RECURRENT].tiny(vocab, **changes)


def pair(vocab: int, **changes: Any) -> Any:
    """A stack for an encoder and a decoder with one embedding."""
    return BACKBONES[PAIR].tiny(vocab, **changes)
