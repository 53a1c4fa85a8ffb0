"""BART: post-norm layers with erf GELU, normalised embeddings and cross-attention in the decoder.

Source: Lewis et al. 2019, arXiv 1910.13461. A stack is an encoder or a decoder; a model with both
decides what they share. As published, they share the token embedding, which is also the output
head. Each stack has its own position table, whose first two rows are unused. The output bias is
zero in all published files and is omitted.
"""

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
from jvae.nn.spec import StackSpec
from jvae.pretrained.backbones import HEADS, Backbone, count, expect, flag
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
ABILITIES = transformer.DECODER | {"cross"}
STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class BartConfig(TransformerConfig):
    """Sizes of one stack of a BART."""

    cross: bool = setting(False, help="Cross-attention in every layer; set by the model.")
    scaled: bool = setting(False, help="Embeddings are multiplied by sqrt(width).")


def spec(config: BartConfig, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    return StackSpec(
        **sizes.of_spec(config),
        residual="post",
        embed_norm=True,
        final_norm=False,
        positions=config.positions,
        position_offset=OFFSET,
        embed_scale=config.width**0.5 if config.scaled else 1.0,
        cross=config.cross,
        own_head=own_head,
    )


def stack(config: BartConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, own_head), config.positions)


def _tiny(vocab: int, **changes: Any) -> BartConfig:
    return BartConfig(**tiny.transformer(vocab, **changes))


# Pretrained files


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    layers, heads, mlp = (
        count(config, f"encoder_{name}") for name in ("layers", "attention_heads", "ffn_dim")
    )
    for key, value in dict(layers=layers, attention_heads=heads, ffn_dim=mlp).items():
        if count(config, f"decoder_{key}") != value:
            raise ValueError(
                f"decoder_{key} is {config[f'decoder_{key}']}, encoder_{key} is {value}; "
                "only equal sizes are implemented"
            )
    expect(
        config,
        activation_function="gelu",
        add_bias_logits=False,
        add_final_layer_norm=False,
        normalize_before=False,
        normalize_embedding=True,
        static_position_embeddings=False,
        extra_pos_embeddings=OFFSET,
        tie_word_embeddings=True,
    )
    return dict(
        layers=layers,
        width=count(config, "d_model"),
        heads=heads,
        mlp=mlp,
        vocab=count(config, "vocab_size"),
        positions=count(config, "max_position_embeddings"),
        scaled=flag(config, "scale_embedding", False),
        norm_eps=1e-5,
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    if not ours["cross"]:
        raise ValueError(
            "a BART decoder without cross-attention cannot be loaded as a BART model; export the "
            "whole model instead"
        )
    if ours["norm_eps"] != 1e-5:
        raise ValueError(f"norm_eps is {ours['norm_eps']}; that of BART is 1e-5 in every file")
    stack_sizes = {
        "layers": ours["layers"],
        "attention_heads": ours["heads"],
        "ffn_dim": ours["mlp"],
    }
    return dict(
        architectures=["BartForConditionalGeneration"],
        model_type="bart",
        **{f"{stack}_{name}": value for stack in STACKS for name, value in stack_sizes.items()},
        num_hidden_layers=ours["layers"],
        d_model=ours["width"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        scale_embedding=ours["scaled"],
        activation_function="gelu",
        dropout=ours["dropout"],
        attention_dropout=ours["dropout"],
        is_encoder_decoder=True,
    )


FILES = Backbone(
    name="bart",
    prefix="model.",
    renamed=(),
    ignored=(*HEADS, r"final_logits_bias"),
    sizes=_sizes,
    describe=_describe,
    saved_prefix="model.",
    unprefixed=("lm_head.weight",),
)


def _stack(theirs: str, path: str, cross: bool) -> list[NameRule]:
    """Rules for one stack, except its token embedding, under our path."""
    layer, ours = f"{theirs}.layers.{{i}}.", f"{path}/layers"
    norms = {
        f"{path}/embed/norm": f"{theirs}.layernorm_embedding",
        f"{ours}/attn_norm": f"{layer}self_attn_layer_norm",
        f"{ours}/mlp_norm": f"{layer}final_layer_norm",
    }
    projections = {
        "attn/out": (f"{layer}self_attn.out_proj", 2),
        "mlp/up": (f"{layer}fc1", 1),
        "mlp/down": (f"{layer}fc2", 1),
    }
    fused = {"attn/qkv": ("self_attn", "qkv")}
    if cross:
        norms[f"{ours}/cross_norm"] = f"{layer}encoder_attn_layer_norm"
        projections["cross/q"] = (f"{layer}encoder_attn.q_proj", 1)
        projections["cross/out"] = (f"{layer}encoder_attn.out_proj", 2)
        fused["cross/kv"] = ("encoder_attn", "kv")
    rules = [
        NameRule(f"{path}/embed/position/table", (f"{theirs}.embed_positions.weight",), flat(2))
    ]
    for kernel, (attention, parts) in fused.items():
        names = [f"{layer}{attention}.{part}_proj" for part in parts]
        weights, biases = (tuple(f"{name}.{kind}" for name in names) for kind in ("weight", "bias"))
        rules.append(NameRule(f"{ours}/{kernel}/kernel", weights, joined_linear(len(parts))))
        rules.append(NameRule(f"{ours}/{kernel}/bias", biases, joined_bias(len(parts))))
    return rules + norm_rules(norms) + linear_rules(ours, projections)


def _tokens(path: str, vocab: Vocab) -> NameRule:
    return NameRule(f"{path}/embed/token/table", ("shared.weight",), vocab_rows(vocab))


_CROSS = r"decoder\.layers\.\d+\.encoder_attn(_layer_norm)?\..*"
_TIED = (*((f"{stack}.embed_tokens.weight", "shared.weight") for stack in STACKS),)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack with its own token embedding; the other stack is ignored."""
    del pooler  # BART has none
    cross = role == "decoder" and config.get("cross", False)
    other_stack = STACKS[1 - STACKS.index(role)]
    ignored = (*FILES.ignored, rf"{other_stack}\.(?!embed_tokens).*", *([] if cross else [_CROSS]))
    tied = (*_TIED, ("lm_head.weight", "shared.weight"))
    return NameTable((_tokens(path, vocab), *_stack(role, path, cross)), ignored, tied)


def both(config: ConfigDict, vocab: Vocab, cross: bool) -> NameTable:
    """Names of both stacks, {encoder, decoder}; their shared token embedding is the decoder's."""
    del config  # all names are known without it
    rules = _stack("encoder", "encoder", False) + _stack("decoder", "decoder", cross)
    ignored = (*FILES.ignored, *([] if cross else [_CROSS]))
    tied = (*_TIED, ("lm_head.weight", "shared.weight"))
    return NameTable((_tokens("decoder", vocab), *rules), ignored, tied)


BACKBONES.register("bart")(BackboneKind(BartConfig, ABILITIES, stack, _tiny))
LAYOUTS.register("bart")(Layout(FILES, table, both=both))
