"""Llama 2 and 3, SmolLM2, TinyLlama: RMSNorm, rotary positions, grouped kv heads, SwiGLU.

Source: Touvron et al. 2023, arXiv 2307.09288, and Grattafiori et al. 2024, arXiv 2407.21783, whose
scaling of the rotary frequencies is "llama3".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jvae.fields import Needs, setting
from jvae.nn import config as sizes
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack, StackConfig
from jvae.nn.rotary import SCALINGS, Rotary
from jvae.nn.spec import LayerKind, StackSpec
from jvae.pretrained.backbones import (
    HEADS,
    Backbone,
    count,
    expect,
    flag,
    number,
    rope_of,
    rope_type,
    usual_sizes,
)
from jvae.pretrained.layouts import LAYOUTS, Layout
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

_SCALED = Needs(lambda c: c.scaling != "none", "scaling is none")
_LLAMA3 = Needs(lambda c: c.scaling == "llama3", "scaling is not llama3")


@dataclass(frozen=True)
class LlamaConfig(StackConfig):
    """Sizes and compute choices of one stack; groups of query heads share key and value heads."""

    layers: int = setting(**sizes.LAYERS)
    width: int = setting(**sizes.WIDTH)
    heads: int = setting(**sizes.HEADS)
    kv_heads: int = setting(low=1, high=4_096, help="Key and value heads; a divisor of heads.")
    head: int = setting(low=2, high=2**16, help="Width of a head, even.")
    mlp: int = setting(**sizes.MLP)
    vocab: int = setting(**sizes.VOCAB)
    positions: int = setting(low=1, high=2**24, help="Maximum tokens of a text.")
    theta: float = setting(10_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies.")
    scaling: str = setting("none", choices=SCALINGS, help="Scaling of the rotary frequencies.")
    factor: float = setting(
        1.0, above=0.0, high=1e6, help="Divisor of the scaled frequencies.", needs=_SCALED
    )
    low_factor: float = setting(
        1.0,
        above=0.0,
        high=1e6,
        help="Wavelengths above original_positions / low_factor are scaled.",
        needs=_LLAMA3,
    )
    high_factor: float = setting(
        4.0,
        above=0.0,
        high=1e6,
        help="Wavelengths below original_positions / high_factor are not scaled.",
        needs=_LLAMA3,
    )
    original_positions: int = setting(
        8_192,
        low=1,
        high=2**24,
        help="Context length for which the frequencies were chosen, before scaling.",
        needs=_LLAMA3,
    )
    tied: bool = setting(False, help="Whether the output head is the token embedding.")
    dropout: float = setting(0.0, **sizes.DROPOUT)
    norm_eps: float = setting(1e-5, **sizes.NORM_EPS)
    init_std: float = setting(
        0.02, low=0.0, high=10.0, help="Standard deviation of initial kernels and embeddings."
    )
    dtype: str = setting("float32", **sizes.DTYPE)
    remat: str = setting("none", **sizes.REMATS)
    unroll: int = setting(1, **sizes.UNROLL)
    attention: str = setting("xla", **sizes.ATTENTION)
    vocab_multiple: int = setting(128, **sizes.VOCAB_MULTIPLE)
    xent_chunk: int = setting(8192, **sizes.XENT_CHUNK)

    def __post_init__(self) -> None:
        sizes.check_rotary(self)
        sizes.check_kernel(self)

    @property
    def vocab_padded(self) -> int:
        """Rows of the token embedding."""
        return sizes.padded(self.vocab, self.vocab_multiple)


def spec(config: LlamaConfig, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    c = config
    scaling = (c.scaling, c.factor, c.low_factor, c.high_factor, c.original_positions)
    return StackSpec(
        **sizes.of_spec(c),
        norm="rms",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        activation="silu",
        gated=True,
        kinds=(LayerKind(rotary=Rotary(c.theta, 1.0, *scaling)),),
        own_head=own_head or not c.tied,
        own_head_std=c.init_std,
    )


def stack(config: LlamaConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, own_head), config.positions)


def tiny(cls: Any, vocab: int, **changes: Any) -> Any:
    """A config with a few hundred parameters, and three query heads per key and value head."""
    shape: dict[str, Any] = dict(layers=2, width=16, heads=6, kv_heads=2, head=4, mlp=24)
    shape |= dict(vocab=vocab, positions=16, theta=50.0, vocab_multiple=8, xent_chunk=10)
    shape |= dict(dropout=0.1)
    return cls(**(shape | changes))


# Pretrained files


def rotary_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields of a config.json, written by transformers before or since version 5.

    Raises: ValueError for a scaling that is not implemented.
    """
    rope = rope_of(config)
    for stated in (rope, config):
        expect(stated, partial_rotary_factor=1.0)
    kind = rope_type(rope)
    rotary: dict[str, Any] = dict(theta=number({**config, **rope}, "rope_theta", 10_000.0))
    if kind == "default":
        return rotary | dict(scaling="none")
    implemented = ("default", *SCALINGS[1:])
    if kind not in implemented:
        raise ValueError(f"the rotary scaling is {kind!r}; implemented: {', '.join(implemented)}")
    rotary |= dict(scaling=kind, factor=number(rope, "factor"))
    if kind == "llama3":
        rotary |= dict(
            low_factor=number(rope, "low_freq_factor"),
            high_factor=number(rope, "high_freq_factor"),
            original_positions=count(rope, "original_max_position_embeddings"),
        )
    return rotary


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our config that a config.json determines."""
    expect(config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    usual = usual_sizes(config)
    heads, head = usual["heads"], usual["width"] // usual["heads"]
    return dict(
        **usual,
        kv_heads=count(config, "num_key_value_heads", absent=heads, null=heads),
        head=count(config, "head_dim", absent=head, null=head),
        tied=flag(config, "tie_word_embeddings", False),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        **rotary_sizes(config),
    )


def describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `sizes_of`."""
    scaling = None
    if ours["scaling"] != "none":
        scaling = dict(rope_type=ours["scaling"], factor=ours["factor"])
    if ours["scaling"] == "llama3":
        scaling = dict(
            rope_type="llama3",
            factor=ours["factor"],
            low_freq_factor=ours["low_factor"],
            high_freq_factor=ours["high_factor"],
            original_max_position_embeddings=ours["original_positions"],
        )
    return dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        num_attention_heads=ours["heads"],
        num_key_value_heads=ours["kv_heads"],
        head_dim=ours["head"],
        intermediate_size=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        rms_norm_eps=ours["norm_eps"],
        rope_theta=ours["theta"],
        rope_scaling=scaling,
        tie_word_embeddings=ours["tied"],
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
    )


FILES = Backbone(
    name="llama",
    prefix="model.",
    renamed=(),
    # The second pattern: buffers of older files.
    ignored=(*HEADS, r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    sizes=sizes_of,
    describe=describe,
    saved_prefix="model.",
    unprefixed=("lm_head.weight",),
)


NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def table(
    config: Any,
    vocab: Vocab,
    path: str,
    role: str,
    pooler: str | None = None,
    *,
    norms: Mapping[str, str] = NORMS,
    biases: bool = False,
    head_norm: bool = False,
) -> NameTable:
    """Tensor names of one stack of this family, or of one that differs in the options below.

    An encoder ignores the output head.

    Args:
      norms: norms of a layer, our names to foreign names.
      biases: whether queries, keys and values have biases.
      head_norm: whether queries and keys have norms.
    """
    del pooler  # the family has none
    layer, ours = "layers.{i}.", f"{path}/layers"
    attention = f"{layer}self_attn."

    def kernel(name: str, theirs: tuple[str, ...], inputs: int = 1) -> NameRule:
        how = linear(inputs) if len(theirs) == 1 else joined_linear(len(theirs))
        return NameRule(
            f"{ours}/{name}/kernel", tuple(f"{foreign}.weight" for foreign in theirs), how
        )

    def scale(name: str, theirs: str) -> NameRule:
        return NameRule(f"{name}/scale", (f"{theirs}.weight",), flat(1))

    def bias(name: str, theirs: tuple[str, ...]) -> NameRule:
        how = flat(1) if len(theirs) == 1 else joined_bias(len(theirs))
        return NameRule(f"{ours}/{name}/bias", tuple(f"{foreign}.bias" for foreign in theirs), how)

    parts = {"qkv": "qkv"} if config.heads == config.kv_heads else {"q": "q", "kv": "kv"}
    projections = {
        f"attn/{name}": tuple(f"{attention}{letter}_proj" for letter in letters)
        for name, letters in parts.items()
    }
    rules = [
        NameRule(f"{path}/embed/token/table", ("embed_tokens.weight",), vocab_rows(vocab)),
        scale(f"{path}/norm", "norm"),
        *(scale(f"{ours}/{norm}", layer + theirs) for norm, theirs in norms.items()),
        *(kernel(name, theirs) for name, theirs in projections.items()),
        *(bias(name, theirs) for name, theirs in projections.items() if biases),
        *(scale(f"{ours}/attn/{q}_norm", f"{attention}{q}_norm") for q in "qk" if head_norm),
        kernel("attn/out", (f"{attention}o_proj",), 2),
        *(kernel(f"mlp/{part}", (f"{layer}mlp.{part}_proj",)) for part in ("gate", "up", "down")),
    ]
    head = "lm_head.weight"
    if getattr(config, "tied", True):
        return NameTable(tuple(rules), FILES.ignored, ((head, "embed_tokens.weight"),))
    if role == "encoder":
        return NameTable(tuple(rules), (*FILES.ignored, re.escape(head)))
    rules.append(NameRule(f"{path}/head/table", (head,), vocab_rows(vocab)))
    return NameTable(tuple(rules), FILES.ignored)


BACKBONES.register("llama")(
    BackboneKind(LlamaConfig, transformer.DECODER, stack, partial(tiny, LlamaConfig))
)
LAYOUTS.register("llama")(Layout(FILES, table))
