"""Mistral: Llama with sliding-window attention.

Source: Jiang et al. 2023, arXiv 2310.06825. The window applies within a text; latent slots and
vectors in front of a text are visible at any distance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jvae.backbones import llama
from jvae.fields import setting
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.spec import LayerKind
from jvae.pretrained.backbones import FULL, SLIDING, count, expect_layers
from jvae.pretrained.layouts import LAYOUTS, Layout


@dataclass(frozen=True)
class MistralConfig(llama.LlamaConfig):
    """Sizes of a Mistral."""

    window: int = setting(
        0,
        low=0,
        high=2**24,
        help="Attention window in tokens, including the token itself; 0: no window.",
    )


def stack(config: MistralConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    plain = llama.spec(config, own_head)
    kind = LayerKind(plain.kinds[0].rotary, config.window - 1 if config.window else None)
    return transformer.stack(config, replace(plain, kinds=(kind,)), config.positions)


def _tiny(vocab: int, **changes: Any) -> MistralConfig:
    return replace(llama.tiny(MistralConfig, vocab, **changes), window=3)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    window = count(config, "sliding_window", absent=4096, null=0)
    expect_layers(config, SLIDING if window else FULL)
    return llama.sizes_of({"num_key_value_heads": 8, **config}) | dict(window=window)


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return llama.describe(ours) | dict(
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=ours["window"] or None,
    )


FILES = replace(llama.FILES, name="mistral", sizes=_sizes, describe=_describe)
BACKBONES.register("mistral")(BackboneKind(MistralConfig, transformer.DECODER, stack, _tiny))
LAYOUTS.register("mistral")(Layout(FILES, llama.table))
