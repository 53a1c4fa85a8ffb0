"""GPT-NeoX (Pythia): parallel attention and feed-forward, rotary positions on part of each head.

Source: Black et al. 2022, arXiv 2204.06745, and Biderman et al. 2023, arXiv 2304.01373.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jvae.backbones import tiny
from jvae.fields import setting
from jvae.nn import config as sizes
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.config import TransformerConfig
from jvae.nn.rotary import Rotary
from jvae.nn.spec import LayerKind, StackSpec
from jvae.pretrained.backbones import (
    HEADS,
    Backbone,
    expect,
    expect_unscaled,
    flag,
    number,
    rope_of,
    usual_sizes,
)
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import (
    NameRule,
    NameTable,
    Vocab,
    interleaved_bias,
    interleaved_linear,
    linear_rules,
    norm_rules,
    vocab_rows,
)


@dataclass(frozen=True)
class GptNeoxConfig(TransformerConfig):
    """Sizes of a GPT-NeoX."""

    theta: float = setting(10_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies.")
    share: float = setting(0.25, above=0.0, high=1.0, help="Share of each head that is rotated.")
    parallel: bool = setting(True, help="Whether attention and feed-forward read the same input.")
    tied: bool = setting(False, help="Whether the output head is the token embedding.")


def spec(config: GptNeoxConfig, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    c = config
    return StackSpec(
        **sizes.of_spec(c),
        residual="parallel" if c.parallel else "pre",
        kinds=(LayerKind(Rotary(c.theta, c.share)),),
        own_head=own_head or not c.tied,
        own_head_std=c.init_std,
    )


def stack(config: GptNeoxConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, own_head), config.positions)


def _tiny(vocab: int, **changes: Any) -> GptNeoxConfig:
    return GptNeoxConfig(**tiny.transformer(vocab, **changes), share=0.5, theta=50.0)


# Pretrained files


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    expect(config, hidden_act="gelu", attention_bias=True)
    rope = rope_of(config)
    expect_unscaled(rope)
    theta = number(config, "rotary_emb_base", 10_000.0)
    share = number(config, "rotary_pct", 0.25)
    return dict(
        **usual_sizes(config),
        theta=number(rope, "rope_theta", theta),
        share=number(rope, "partial_rotary_factor", share),
        parallel=flag(config, "use_parallel_residual", True),
        tied=flag(config, "tie_word_embeddings", False),
        norm_eps=number(config, "layer_norm_eps", 1e-5),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        architectures=["GPTNeoXForCausalLM"],
        model_type="gpt_neox",
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        num_attention_heads=ours["heads"],
        intermediate_size=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        rotary_emb_base=ours["theta"],
        rotary_pct=ours["share"],
        use_parallel_residual=ours["parallel"],
        tie_word_embeddings=ours["tied"],
        layer_norm_eps=ours["norm_eps"],
        hidden_act="gelu",
        attention_bias=True,
        hidden_dropout=ours["dropout"],
        attention_dropout=ours["dropout"],
    )


FILES = Backbone(
    name="gpt_neox",
    prefix="gpt_neox.",
    renamed=(),
    # The second pattern: buffers.
    ignored=(*HEADS, r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
    sizes=_sizes,
    describe=_describe,
    saved_prefix="gpt_neox.",
    unprefixed=("embed_out.weight",),
)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack; an encoder ignores the output head."""
    del pooler  # the family has none
    layer, ours = "layers.{i}.", f"{path}/layers"
    norms = {
        f"{ours}/attn_norm": f"{layer}input_layernorm",
        f"{ours}/mlp_norm": f"{layer}post_attention_layernorm",
        f"{path}/norm": "final_layer_norm",
    }
    qkv = f"{layer}attention.query_key_value"
    projections = {
        "attn/out": (f"{layer}attention.dense", 2),
        "mlp/up": (f"{layer}mlp.dense_h_to_4h", 1),
        "mlp/down": (f"{layer}mlp.dense_4h_to_h", 1),
    }
    rules = [
        NameRule(f"{path}/embed/token/table", ("embed_in.weight",), vocab_rows(vocab)),
        NameRule(f"{ours}/attn/qkv/kernel", (f"{qkv}.weight",), interleaved_linear(3)),
        NameRule(f"{ours}/attn/qkv/bias", (f"{qkv}.bias",), interleaved_bias(3)),
    ]
    rules += norm_rules(norms) + linear_rules(ours, projections)
    head = "embed_out.weight"
    if config.tied:
        return NameTable(tuple(rules), FILES.ignored, ((head, "embed_in.weight"),))
    if role == "encoder":
        return NameTable(tuple(rules), (*FILES.ignored, re.escape(head)))
    rules.append(NameRule(f"{path}/head/table", (head,), vocab_rows(vocab)))
    return NameTable(tuple(rules), FILES.ignored)


BACKBONES.register("gpt_neox")(BackboneKind(GptNeoxConfig, transformer.DECODER, stack, _tiny))
LAYOUTS.register("gpt_neox")(Layout(FILES, table))
