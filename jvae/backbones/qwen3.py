"""Qwen3: Llama with queries and keys normalised per head.

Source: Yang et al. 2025, arXiv 2505.09388. Sliding windows, off in all published sizes, are
rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jvae.backbones import llama, qwen2
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.pretrained.layouts import LAYOUTS, Layout


@dataclass(frozen=True)
class Qwen3Config(llama.LlamaConfig):
    """Sizes of a Qwen3."""


def stack(config: Qwen3Config, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    spec = replace(llama.spec(config, own_head), head_norm=True)
    return transformer.stack(config, spec, config.positions)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    # The default head width is 128, independent of the model's width and number of heads.
    return qwen2.sizes_of({"head_dim": 128, **config})


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return llama.describe(ours) | dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", use_sliding_window=False
    )


FILES = replace(llama.FILES, name="qwen3", sizes=_sizes, describe=_describe)
BACKBONES.register("qwen3")(
    BackboneKind(Qwen3Config, transformer.DECODER, stack, partial(llama.tiny, Qwen3Config))
)
LAYOUTS.register("qwen3")(Layout(FILES, partial(llama.table, head_norm=True)))
