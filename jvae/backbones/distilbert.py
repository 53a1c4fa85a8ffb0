"""DistilBERT: BERT without token types and pooler, and with different tensor names.

Source: Sanh et al. 2019, arXiv 1910.01108.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from jvae.backbones import bert, tiny
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.config import TransformerConfig
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


@dataclass(frozen=True)
class DistilBertConfig(TransformerConfig):
    """Sizes of a DistilBERT encoder."""


def stack(config: DistilBertConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    del own_head  # an encoder has no output head
    spec = replace(bert.spec(config), types=0)
    return transformer.stack(config, spec, config.positions, decodes=False)


def _tiny(vocab: int, **changes: Any) -> DistilBertConfig:
    return DistilBertConfig(**tiny.transformer(vocab, **changes))


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    expect(config, activation="gelu", sinusoidal_pos_embds=False)
    return dict(
        layers=count(config, "n_layers"),
        width=count(config, "dim"),
        heads=count(config, "n_heads"),
        mlp=count(config, "hidden_dim"),
        vocab=count(config, "vocab_size"),
        positions=count(config, "max_position_embeddings"),
        norm_eps=1e-12,
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours["norm_eps"] != 1e-12:
        raise ValueError(f"norm_eps is {ours['norm_eps']}; that of DistilBERT is 1e-12 everywhere")
    return dict(
        architectures=["DistilBertModel"],
        model_type="distilbert",
        n_layers=ours["layers"],
        dim=ours["width"],
        n_heads=ours["heads"],
        hidden_dim=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        activation="gelu",
        dropout=ours["dropout"],
        attention_dropout=ours["dropout"],
    )


FILES = Backbone(
    name="distilbert",
    prefix="distilbert.",
    native_prefix="transformer.layer.",
    renamed=(),
    ignored=(
        *HEADS,
        r"embeddings\.position_ids",
        r"(vocab_transform|vocab_layer_norm|vocab_projector)\..*",
        r"pre_classifier\..*",
    ),
    sizes=_sizes,
    describe=_describe,
)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack in Hugging Face files."""
    del config, role, pooler  # one layout for all, and no pooler
    layer, ours = "transformer.layer.{i}.", f"{path}/layers"
    norms = {
        f"{ours}/attn_norm": f"{layer}sa_layer_norm",
        f"{ours}/mlp_norm": f"{layer}output_layer_norm",
        f"{path}/embed/norm": "embeddings.LayerNorm",
    }
    projections = {
        "attn/out": (f"{layer}attention.out_lin", 2),
        "mlp/up": (f"{layer}ffn.lin1", 1),
        "mlp/down": (f"{layer}ffn.lin2", 1),
    }
    qkv = [f"{layer}attention.{letter}_lin" for letter in "qkv"]
    weights, biases = (tuple(f"{name}.{kind}" for name in qkv) for kind in ("weight", "bias"))
    embeddings = {"token": ("word", vocab_rows(vocab)), "position": ("position", flat(2))}
    rules = [
        *(
            NameRule(
                f"{path}/embed/{table}/table", (f"embeddings.{theirs}_embeddings.weight",), how
            )
            for table, (theirs, how) in embeddings.items()
        ),
        NameRule(f"{ours}/attn/qkv/kernel", weights, joined_linear(3)),
        NameRule(f"{ours}/attn/qkv/bias", biases, joined_bias(3)),
    ]
    rules += norm_rules(norms) + linear_rules(ours, projections)
    return NameTable(tuple(rules), FILES.ignored)


BACKBONES.register("distilbert")(BackboneKind(DistilBertConfig, transformer.ENCODER, stack, _tiny))
LAYOUTS.register("distilbert")(Layout(FILES, table))
