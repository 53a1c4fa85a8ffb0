"""ModernBERT: encoder without biases; rotary positions, alternating local and global layers, GeGLU.

Source: Warner et al. 2024, arXiv 2412.13663. The first layer has no attention norm, as its input is
already normalised.
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
from jvae.nn.rotary import Rotary
from jvae.nn.spec import LayerKind, StackSpec
from jvae.pretrained.backbones import (
    FULL,
    HEADS,
    SLIDING,
    Backbone,
    count,
    expect,
    expect_unscaled,
    global_every,
    number,
    section,
    usual_sizes,
)
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import NameRule, NameTable, Vocab, flat, linear, vocab_rows

GLOBAL, LOCAL = 0, 1


@dataclass(frozen=True)
class ModernBertConfig(TransformerConfig):
    """Sizes of a ModernBERT.

    Layers 0, `global_every`, ... attend to the whole text, the others to tokens at most
    `window` / 2 away.
    """

    window: int = setting(
        128, low=2, high=2**24, help="Attention window of local layers in tokens, even."
    )
    global_every: int = setting(3, low=1, high=4_096, help="Layers 0, n, 2n, ... are global.")
    theta: float = setting(
        160_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies in global layers."
    )
    local_theta: float = setting(
        10_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies in local layers."
    )


def spec(config: ModernBertConfig) -> StackSpec:
    """The layer specification of a config."""
    c = config
    return StackSpec(
        **sizes.of_spec(c),
        norm_bias=False,
        embed_norm=True,
        first_norm=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        gated=True,
        fused_gate=True,
        kinds=(LayerKind(Rotary(c.theta)), LayerKind(Rotary(c.local_theta), c.window // 2)),
        pattern=tuple(LOCAL if i % c.global_every else GLOBAL for i in range(c.layers)),
    )


def stack(config: ModernBertConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    del own_head  # an encoder has no output head
    return transformer.stack(config, spec(config), config.positions, decodes=False)


def _tiny(vocab: int, **changes: Any) -> ModernBertConfig:
    shape = tiny.transformer(vocab, **changes)
    return ModernBertConfig(**shape, window=4, global_every=2, theta=50.0, local_theta=20.0)


# Pretrained files


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    expect(
        config,
        hidden_activation="gelu",
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    rope = section(config, "rope_parameters")
    full, local = section(rope, FULL), section(rope, SLIDING)
    expect_unscaled(full, local, section(config, "rope_scaling"))
    period = count(config, "global_attn_every_n_layers", 3)
    theta = number(config, "global_rope_theta", 160_000.0)
    local_theta = number(config, "local_rope_theta", 10_000.0)
    return dict(
        **usual_sizes(config),
        window=count(config, "local_attention"),
        global_every=global_every(config, first=0, absent=period),
        theta=number(full, "rope_theta", theta),
        local_theta=number(local, "rope_theta", local_theta),
        norm_eps=number(config, "norm_eps", 1e-5),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        architectures=["ModernBertModel"],
        model_type="modernbert",
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        num_attention_heads=ours["heads"],
        intermediate_size=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        local_attention=ours["window"],
        global_attn_every_n_layers=ours["global_every"],
        global_rope_theta=ours["theta"],
        local_rope_theta=ours["local_theta"],
        norm_eps=ours["norm_eps"],
        hidden_activation="gelu",
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )


FILES = Backbone(
    name="modernbert",
    prefix="model.",
    renamed=(),
    ignored=(*HEADS, r"head\..*", r"decoder\..*"),
    sizes=_sizes,
    describe=_describe,
)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack in Hugging Face files."""
    del config, role, pooler  # one layout for all, and no pooler
    layer, ours = "layers.{i}.", f"{path}/layers"
    first = NameRule(f"{ours}/attn_norm/scale", (f"{layer}attn_norm.weight",), flat(1), absent=(0,))
    norms = {
        f"{ours}/mlp_norm": f"{layer}mlp_norm",
        f"{path}/norm": "final_norm",
        f"{path}/embed/norm": "embeddings.norm",
    }
    projections = {
        "attn/qkv": (f"{layer}attn.Wqkv", 1),
        "attn/out": (f"{layer}attn.Wo", 2),
        "mlp/both": (f"{layer}mlp.Wi", 1),  # the activated half comes first
        "mlp/down": (f"{layer}mlp.Wo", 1),
    }
    embedding = ("embeddings.tok_embeddings.weight",)
    return NameTable(
        (
            NameRule(f"{path}/embed/token/table", embedding, vocab_rows(vocab)),
            first,
            *(
                NameRule(f"{norm}/scale", (f"{theirs}.weight",), flat(1))
                for norm, theirs in norms.items()
            ),
            *(
                NameRule(f"{ours}/{projection}/kernel", (f"{theirs}.weight",), linear(inputs))
                for projection, (theirs, inputs) in projections.items()
            ),
        ),
        FILES.ignored,
    )


BACKBONES.register("modernbert")(BackboneKind(ModernBertConfig, transformer.ENCODER, stack, _tiny))
LAYOUTS.register("modernbert")(Layout(FILES, table))
