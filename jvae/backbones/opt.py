"""OPT: GPT-2 with ReLU and a position table whose first two rows are unused.

Source: Zhang et al. 2022, arXiv 2205.01068. The 350m size is not supported: its embeddings are
narrower than its layers, and its norms come after the sub-layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jvae.backbones import tiny
from jvae.nn import config as sizes
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.config import TransformerConfig
from jvae.nn.spec import StackSpec
from jvae.pretrained.backbones import HEADS, Backbone, count, expect
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import (
    NameRule,
    NameTable,
    Vocab,
    flat,
    joined_bias,
    joined_linear,
    linear_rules,
    norm_rules,
    vocab_rows,
)

OFFSET = 2


@dataclass(frozen=True)
class OptConfig(TransformerConfig):
    """Sizes of an OPT."""


def spec(config: OptConfig, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    return StackSpec(
        **sizes.of_spec(config),
        activation="relu",
        positions=config.positions,
        position_offset=OFFSET,
        own_head=own_head,
    )


def stack(config: OptConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, own_head), config.positions)


def _tiny(vocab: int, **changes: Any) -> OptConfig:
    return OptConfig(**tiny.transformer(vocab, **changes))


# Pretrained files


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    width = count(config, "hidden_size")
    expect(
        config,
        activation_function="relu",
        do_layer_norm_before=True,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        tie_word_embeddings=True,
        word_embed_proj_dim=width,
        _remove_final_layer_norm=False,
    )
    return dict(
        layers=count(config, "num_hidden_layers"),
        width=width,
        heads=count(config, "num_attention_heads"),
        mlp=count(config, "ffn_dim"),
        vocab=count(config, "vocab_size"),
        positions=count(config, "max_position_embeddings"),
        norm_eps=1e-5,
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours["norm_eps"] != 1e-5:
        raise ValueError(f"norm_eps is {ours['norm_eps']}; that of OPT is 1e-5 in every file")
    return dict(
        architectures=["OPTForCausalLM"],
        model_type="opt",
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        word_embed_proj_dim=ours["width"],
        num_attention_heads=ours["heads"],
        ffn_dim=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        activation_function="relu",
        do_layer_norm_before=True,
        dropout=ours["dropout"],
        attention_dropout=ours["dropout"],
    )


FILES = Backbone(
    name="opt",
    prefix="model.decoder.",
    renamed=((r"^decoder\.", ""),),  # files saved without a head
    ignored=HEADS,
    sizes=_sizes,
    describe=_describe,
    saved_prefix="model.decoder.",
    unprefixed=("lm_head.weight",),
)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack in Hugging Face files."""
    del config, role, pooler  # one layout for all
    layer, ours = "layers.{i}.", f"{path}/layers"
    norms = {
        f"{ours}/attn_norm": f"{layer}self_attn_layer_norm",
        f"{ours}/mlp_norm": f"{layer}final_layer_norm",
        f"{path}/norm": "final_layer_norm",
    }
    projections = {
        "attn/out": (f"{layer}self_attn.out_proj", 2),
        "mlp/up": (f"{layer}fc1", 1),
        "mlp/down": (f"{layer}fc2", 1),
    }
    qkv = [f"{layer}self_attn.{letter}_proj" for letter in "qkv"]
    weights, biases = (tuple(f"{name}.{kind}" for name in qkv) for kind in ("weight", "bias"))
    rules = [
        NameRule(f"{path}/embed/token/table", ("embed_tokens.weight",), vocab_rows(vocab)),
        NameRule(f"{path}/embed/position/table", ("embed_positions.weight",), flat(2)),
        NameRule(f"{ours}/attn/qkv/kernel", weights, joined_linear(3)),
        NameRule(f"{ours}/attn/qkv/bias", biases, joined_bias(3)),
    ]
    rules += norm_rules(norms) + linear_rules(ours, projections)
    return NameTable(tuple(rules), FILES.ignored, (("lm_head.weight", "embed_tokens.weight"),))


BACKBONES.register("opt")(BackboneKind(OptConfig, transformer.DECODER, stack, _tiny))
LAYOUTS.register("opt")(Layout(FILES, table))
