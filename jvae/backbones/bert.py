"""BERT encoder: post-norm layers with erf GELU, learned positions, token types; without pooler.

Source: Devlin et al. 2019.
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
from jvae.pretrained import bert as weights
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import NameTable, Vocab

TOKEN_TYPES = 2


@dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """Sizes of a BERT encoder."""


def spec(config: TransformerConfig) -> StackSpec:
    """The layer specification of a config."""
    return StackSpec(
        **sizes.of_spec(config),
        residual="post",
        embed_norm=True,
        final_norm=False,
        positions=config.positions,
        types=TOKEN_TYPES,
    )


def stack(config: BertConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    del own_head  # an encoder has no output head
    return transformer.stack(config, spec(config), config.positions, decodes=False)


def _tiny(vocab: int, **changes: Any) -> BertConfig:
    return BertConfig(**tiny.transformer(vocab, **changes))


def _table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    del config, role  # one layout for all sizes
    return weights.table(vocab, path, pooler)


BACKBONES.register("bert")(BackboneKind(BertConfig, transformer.ENCODER, stack, _tiny))
LAYOUTS.register("bert")(Layout(weights.BACKBONE, _table, pooler=True))
