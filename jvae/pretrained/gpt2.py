"""Names of GPT-2's tensors (Hugging Face layout, also used by the original checkpoints).

Kernels are stored as (in, out).
"""

from collections.abc import Mapping
from typing import Any

from jvae.pretrained.backbones import HEADS, Backbone, count, expect, number
from jvae.pretrained.names import NameRule, NameTable, Vocab, flat, kernel_rows, vocab_rows


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    expect(
        config,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    width = count(config, "n_embd")
    return dict(
        layers=count(config, "n_layer"),
        width=width,
        heads=count(config, "n_head"),
        mlp=count(config, "n_inner", absent=4 * width, null=4 * width),
        vocab=count(config, "vocab_size"),
        positions=count(config, "n_positions"),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        architectures=["GPT2LMHeadModel"],
        model_type="gpt2",
        n_layer=ours["layers"],
        n_embd=ours["width"],
        n_head=ours["heads"],
        n_inner=ours["mlp"],
        vocab_size=ours["vocab"],
        n_positions=ours["positions"],
        layer_norm_epsilon=ours["norm_eps"],
        activation_function="gelu_new",
        resid_pdrop=ours["dropout"],
        embd_pdrop=ours["dropout"],
        attn_pdrop=ours["dropout"],
    )


BACKBONE = Backbone(
    name="gpt2",
    prefix="transformer.",
    renamed=(),
    ignored=(
        *HEADS,
        r"h\.\d+\.attn\.(masked_)?bias",  # causal mask buffers
        r"multiple_choice_head\..*",
    ),
    sizes=_sizes,
    describe=_describe,
    saved_prefix="transformer.",
    unprefixed=("lm_head.weight",),
)


def table(vocab: int | Vocab, path: str) -> NameTable:
    """The table for a decoder, for the family's own files. path: our path of the decoder."""
    tied = (("lm_head.weight", "wte.weight"),)
    return NameTable(rules(vocab, "", path), BACKBONE.ignored, tied)


def rules(vocab: int | Vocab, prefix: str, path: str) -> tuple[NameRule, ...]:
    """Rules of a GPT-2 decoder.

    Args:
      vocab: real tokens of the embedding.
      prefix: prefix of the foreign names, such as "transformer.".
      path: our path of the decoder.
    """
    layer = f"{prefix}h.{{i}}."
    norms = {
        f"{path}/layers/attn_norm": f"{layer}ln_1",
        f"{path}/layers/mlp_norm": f"{layer}ln_2",
        f"{path}/norm": f"{prefix}ln_f",
    }
    projections = {
        f"{path}/layers/attn/qkv": (f"{layer}attn.c_attn", 1),
        f"{path}/layers/attn/out": (f"{layer}attn.c_proj", 2),
        f"{path}/layers/mlp/up": (f"{layer}mlp.c_fc", 1),
        f"{path}/layers/mlp/down": (f"{layer}mlp.c_proj", 1),
    }
    return (
        NameRule(f"{path}/embed/token/table", (f"{prefix}wte.weight",), vocab_rows(vocab)),
        NameRule(f"{path}/embed/position/table", (f"{prefix}wpe.weight",), flat(2)),
        *(
            NameRule(f"{ours}/scale", (f"{theirs}.weight",), flat(1))
            for ours, theirs in norms.items()
        ),
        *(NameRule(f"{ours}/bias", (f"{theirs}.bias",), flat(1)) for ours, theirs in norms.items()),
        *(
            NameRule(f"{ours}/kernel", (f"{theirs}.weight",), kernel_rows(n_in))
            for ours, (theirs, n_in) in projections.items()
        ),
        *(
            NameRule(f"{ours}/bias", (f"{theirs}.bias",), flat(1))
            for ours, (theirs, _) in projections.items()
        ),
    )
