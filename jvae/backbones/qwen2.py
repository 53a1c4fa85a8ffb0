"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

Source: Yang et al. 2024, arXiv 2407.10671. Sliding windows, off in all published sizes, are
rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jvae.backbones import llama
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.pretrained.backbones import FULL, expect_layers, expect_off
from jvae.pretrained.layouts import LAYOUTS, Layout


@dataclass(frozen=True)
class Qwen2Config(llama.LlamaConfig):
    """Sizes of a Qwen2."""


def stack(config: Qwen2Config, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    spec = replace(llama.spec(config, own_head), qkv_bias=True)
    return transformer.stack(config, spec, config.positions)


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our config that a config.json of Qwen2 or Qwen3 determines."""
    expect_off(config, "use_sliding_window")
    expect_layers(config, FULL)
    return llama.sizes_of({"num_key_value_heads": 32, **config})


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return llama.describe(ours) | dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False
    )


FILES = replace(llama.FILES, name="qwen2", sizes=sizes_of, describe=_describe)
BACKBONES.register("qwen2")(
    BackboneKind(Qwen2Config, transformer.DECODER, stack, partial(llama.tiny, Qwen2Config))
)
LAYOUTS.register("qwen2")(Layout(FILES, partial(llama.table, biases=True)))
