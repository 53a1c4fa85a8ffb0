"""GPT-2: pre-norm layers with tanh GELU, learned positions, a tied output head.

Source: Radford et al. 2019.
"""

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jvae.backbones import tiny
from jvae.nn import config as sizes
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.config import TransformerConfig
from jvae.nn.spec import StackSpec
from jvae.pretrained import gpt2 as weights
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import NameTable, Vocab


@dataclass(frozen=True)
class Gpt2Config(TransformerConfig):
    """Sizes of a GPT-2."""


def spec(config: TransformerConfig, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    return StackSpec(
        **sizes.of_spec(config),
        activation="gelu_tanh",
        positions=config.positions,
        own_head=own_head,
    )


def stack(config: Gpt2Config, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, own_head), config.positions)


def _tiny(vocab: int, **changes: Any) -> Gpt2Config:
    return Gpt2Config(**tiny.transformer(vocab, **changes))


def _table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    del config, role, pooler  # one layout for all sizes, and no pooler
    return weights.table(vocab, path)


BACKBONES.register("gpt2")(BackboneKind(Gpt2Config, transformer.DECODER, stack, _tiny))
LAYOUTS.register("gpt2")(Layout(weights.BACKBONE, _table))
