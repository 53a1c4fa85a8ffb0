"""Names of BERT's tensors (Hugging Face layout, also used by the original checkpoints)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jvae.pretrained.backbones import (
    HEADS,
    Backbone,
    expect,
    expect_off,
    number,
    usual_sizes,
)
from jvae.pretrained.names import (
    NameRule,
    NameTable,
    Vocab,
    flat,
    joined_bias,
    joined_linear,
    linear,
    vocab_rows,
)

POOLER = r"pooler\.dense\.(weight|bias)"


def sizes_of(config: Mapping[str, Any], types: int = 2) -> dict[str, Any]:
    """The fields of our config that a config.json determines. types: number of token types."""
    expect({"type_vocab_size": 2, **config}, type_vocab_size=types)
    expect(config, hidden_act="gelu", position_embedding_type="absolute")
    expect_off(config, "is_decoder")
    return dict(
        **usual_sizes(config),
        norm_eps=number(config, "layer_norm_eps", 1e-12),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        architectures=["BertModel"],
        model_type="bert",
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        num_attention_heads=ours["heads"],
        intermediate_size=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        layer_norm_eps=ours["norm_eps"],
        hidden_act="gelu",
        type_vocab_size=2,
        hidden_dropout_prob=ours["dropout"],
        attention_probs_dropout_prob=ours["dropout"],
    )


BACKBONE = Backbone(
    name="bert",
    prefix="bert.",
    # The published files still have the original TensorFlow names.
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(*HEADS, r"embeddings\.position_ids", r"cls\..*"),
    sizes=sizes_of,
    describe=_describe,
)


def table(vocab: int | Vocab, path: str, pooler: str | None) -> NameTable:
    """The table for an encoder, for the family's own files, which may lack a pooler.

    Args:
      path: our path of the encoder.
      pooler: our path of the pooler; None ignores the pooler in the files.
    """
    names = rules(vocab, "", path, pooler)
    if pooler is None:
        return NameTable(names, (*BACKBONE.ignored, POOLER))
    optional = (
        dataclasses.replace(rule, optional="pooler") if rule.path.startswith(pooler) else rule
        for rule in names
    )
    return NameTable(tuple(optional), BACKBONE.ignored)


def rules(vocab: int | Vocab, prefix: str, path: str, pooler: str | None) -> tuple[NameRule, ...]:
    """Rules of a BERT encoder.

    Args:
      vocab: real tokens of the embedding.
      prefix: prefix of the foreign names, such as "bert.".
      path: our path of the encoder.
      pooler: our path of the pooler; None if the model has none.
    """
    layer = f"{prefix}encoder.layer.{{i}}."
    qkv = ("query", "key", "value")
    norms = {
        f"{path}/layers/attn_norm": f"{layer}attention.output.LayerNorm",
        f"{path}/layers/mlp_norm": f"{layer}output.LayerNorm",
        f"{path}/embed/norm": f"{prefix}embeddings.LayerNorm",
    }
    projections = {
        f"{path}/layers/attn/out": (f"{layer}attention.output.dense", 2),
        f"{path}/layers/mlp/up": (f"{layer}intermediate.dense", 1),
        f"{path}/layers/mlp/down": (f"{layer}output.dense", 1),
    }
    if pooler is not None:
        projections[pooler] = (f"{prefix}pooler.dense", 1)
    weights = tuple(f"{layer}attention.self.{name}.weight" for name in qkv)
    biases = tuple(f"{layer}attention.self.{name}.bias" for name in qkv)
    embeddings = f"{prefix}embeddings."
    return (
        NameRule(
            f"{path}/embed/token/table", (f"{embeddings}word_embeddings.weight",), vocab_rows(vocab)
        ),
        NameRule(
            f"{path}/embed/position/table", (f"{embeddings}position_embeddings.weight",), flat(2)
        ),
        NameRule(
            f"{path}/embed/type/table", (f"{embeddings}token_type_embeddings.weight",), flat(2)
        ),
        NameRule(f"{path}/layers/attn/qkv/kernel", weights, joined_linear(3)),
        NameRule(f"{path}/layers/attn/qkv/bias", biases, joined_bias(3)),
        *(
            NameRule(f"{ours}/scale", (f"{theirs}.weight",), flat(1))
            for ours, theirs in norms.items()
        ),
        *(NameRule(f"{ours}/bias", (f"{theirs}.bias",), flat(1)) for ours, theirs in norms.items()),
        *(
            NameRule(f"{ours}/kernel", (f"{theirs}.weight",), linear(n_in))
            for ours, (theirs, n_in) in projections.items()
        ),
        *(
            NameRule(f"{ours}/bias", (f"{theirs}.bias",), flat(1))
            for ours, (theirs, _) in projections.items()
        ),
    )
