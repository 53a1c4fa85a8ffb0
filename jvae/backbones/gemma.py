"""Gemma 2 and 3 (text): norms around every sub-layer, alternating local and global layers, scaled
embeddings.

Source: Gemma Team 2024, arXiv 2408.00118 (soft caps), and 2025, arXiv 2503.19786 (norms of queries
and keys, two rotary bases). A latent's offset is added to the embeddings after they are scaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jvae.backbones import llama
from jvae.fields import setting
from jvae.nn import config as sizes
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack, StackConfig
from jvae.nn.rotary import Rotary
from jvae.nn.spec import LayerKind, StackSpec
from jvae.pretrained.backbones import (
    FULL,
    SLIDING,
    count,
    expect,
    expect_off,
    expect_unscaled,
    global_every,
    number,
    rope_of,
    section,
    usual_sizes,
)
from jvae.pretrained.layouts import LAYOUTS, Layout

LOCAL, GLOBAL = 0, 1


@dataclass(frozen=True)
class GemmaConfig(StackConfig):
    """Sizes and compute choices.

    Every `global_every`-th layer attends to the whole text, the others to the last `window` tokens.
    """

    layers: int = setting(**sizes.LAYERS)
    width: int = setting(**sizes.WIDTH)
    heads: int = setting(**sizes.HEADS)
    kv_heads: int = setting(low=1, high=4_096, help="Key and value heads; a divisor of heads.")
    head: int = setting(low=2, high=2**16, help="Width of a head, even.")
    mlp: int = setting(**sizes.MLP)
    vocab: int = setting(**sizes.VOCAB)
    positions: int = setting(low=1, high=2**24, help="Maximum tokens of a text.")
    window: int = setting(
        low=1,
        high=2**24,
        help="Attention window of local layers in tokens, including the token itself.",
    )
    global_every: int = setting(low=1, high=4_096, help="Every n-th layer is global.")
    query_scale: int = setting(
        low=1, high=2**17, help="Attention logits are divided by the square root of this."
    )
    theta: float = setting(
        10_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies in global layers."
    )
    local_theta: float = setting(
        10_000.0, above=1.0, high=1e9, help="Base of the rotary frequencies in local layers."
    )
    factor: float = setting(
        1.0, above=0.0, high=1e6, help="Divisor of the rotary frequencies in global layers."
    )
    logit_cap: float = setting(
        0.0, low=0.0, high=1e6, help="Soft cap of attention logits; 0: none."
    )
    score_cap: float = setting(0.0, low=0.0, high=1e6, help="Soft cap of output logits; 0: none.")
    dropout: float = setting(0.0, **sizes.DROPOUT)
    norm_eps: float = setting(1e-6, **sizes.NORM_EPS)
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


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """Sizes of a Gemma 2."""


@dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    """Sizes of a Gemma 3."""


def spec(config: GemmaConfig, head_norm: bool, own_head: bool = False) -> StackSpec:
    """The layer specification of a config."""
    c = config
    scaling = "none" if c.factor == 1.0 else "linear"
    local = LayerKind(Rotary(c.local_theta), c.window - 1)
    full = LayerKind(Rotary(c.theta, scaling=scaling, factor=c.factor))
    pattern = [GLOBAL if (i + 1) % c.global_every == 0 else LOCAL for i in range(c.layers)]
    return StackSpec(
        **sizes.of_spec(c),
        norm="rms_plus_one",
        residual="sandwich",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        head_norm=head_norm,
        activation="gelu_tanh",
        gated=True,
        kinds=(local, full),
        pattern=tuple(pattern),
        scale=c.query_scale**-0.5,
        logit_cap=c.logit_cap or None,
        score_cap=c.score_cap or None,
        embed_scale=c.width**0.5,
        own_head=own_head,
        own_head_std=c.init_std,
    )


def stack(head_norm: bool, config: GemmaConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    return transformer.stack(config, spec(config, head_norm, own_head), config.positions)


def _tiny(cls: Any, vocab: int, **changes: Any) -> Any:
    shape: dict[str, Any] = dict(layers=2, width=16, heads=4, kv_heads=2, head=6, mlp=24)
    shape |= dict(vocab=vocab, positions=16, window=3, global_every=2, query_scale=5)
    shape |= dict(theta=50.0, local_theta=20.0, dropout=0.1, vocab_multiple=8, xent_chunk=10)
    return cls(**(shape | changes))


# Pretrained files

NORMS = {
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def _sizes(config: Mapping[str, Any], period: int) -> dict[str, Any]:
    """The fields that both versions have. period: that of the global layers by default."""
    expect(
        config,
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        tie_word_embeddings=True,
    )
    expect_off(config, "use_bidirectional_attention")
    return dict(
        **usual_sizes(config),
        kv_heads=count(config, "num_key_value_heads"),
        head=count(config, "head_dim"),
        window=count(config, "sliding_window"),
        global_every=global_every(config, first=1, absent=period),
        query_scale=count(config, "query_pre_attn_scalar"),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
    )


def _sizes2(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = rope_of(config)
    expect_unscaled(rope)
    theta = number({**config, **rope}, "rope_theta", 10_000.0)
    return _sizes(config, period=2) | dict(
        theta=theta,
        local_theta=theta,
        factor=1.0,
        logit_cap=number(config, "attn_logit_softcapping", absent=50.0, null=0.0),
        score_cap=number(config, "final_logit_softcapping", absent=30.0, null=0.0),
    )


def _sizes3(config: Mapping[str, Any]) -> dict[str, Any]:
    # The classes of transformers read this cap and do not apply it.
    expect(config, attn_logit_softcapping=None)
    rope = section(config, "rope_parameters")
    local = section(rope, SLIDING)
    expect_unscaled(local)
    full = {**section(rope, FULL), **section(config, "rope_scaling")}
    full.setdefault("rope_theta", config.get("rope_theta", 1e6))
    rotary = llama.rotary_sizes(dict(rope_parameters=full))
    if rotary["scaling"] not in ("none", "linear"):
        raise ValueError(f"the rotary scaling is {rotary['scaling']!r}; only linear is implemented")
    older = number(config, "rope_local_base_freq", 10_000.0)
    return _sizes(config, period=count(config, "sliding_window_pattern", 6)) | dict(
        theta=rotary["theta"],
        local_theta=number(local, "rope_theta", older),
        factor=rotary.get("factor", 1.0),
        logit_cap=0.0,
        score_cap=number(config, "final_logit_softcapping", absent=0.0, null=0.0),
    )


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        num_hidden_layers=ours["layers"],
        hidden_size=ours["width"],
        num_attention_heads=ours["heads"],
        num_key_value_heads=ours["kv_heads"],
        head_dim=ours["head"],
        intermediate_size=ours["mlp"],
        vocab_size=ours["vocab"],
        max_position_embeddings=ours["positions"],
        sliding_window=ours["window"],
        query_pre_attn_scalar=ours["query_scale"],
        rms_norm_eps=ours["norm_eps"],
        rope_theta=ours["theta"],
        layer_types=[
            SLIDING if (i + 1) % ours["global_every"] else FULL for i in range(ours["layers"])
        ],
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        tie_word_embeddings=True,
        attn_logit_softcapping=ours["logit_cap"] or None,
        final_logit_softcapping=ours["score_cap"] or None,
    )


def _describe2(ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours["local_theta"] != ours["theta"] or ours["factor"] != 1.0:
        raise ValueError("all layers of a Gemma 2 have the same rotary frequencies, unscaled")
    return _describe(ours) | dict(architectures=["Gemma2ForCausalLM"], model_type="gemma2")


def _describe3(ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours["logit_cap"]:
        raise ValueError(f"logit_cap is {ours['logit_cap']}; a Gemma 3 has no cap of attention")
    scaling = None
    if ours["factor"] != 1.0:
        scaling = dict(rope_type="linear", factor=ours["factor"])
    return _describe(ours) | dict(
        architectures=["Gemma3ForCausalLM"],
        model_type="gemma3_text",
        rope_local_base_freq=ours["local_theta"],
        rope_scaling=scaling,
    )


for _name, _cls, _norms_heads, _model, _own, _back in (
    ("gemma2", Gemma2Config, False, "gemma2", _sizes2, _describe2),
    ("gemma3", Gemma3Config, True, "gemma3_text", _sizes3, _describe3),
):
    BACKBONES.register(_name)(
        BackboneKind(_cls, transformer.DECODER, partial(stack, _norms_heads), partial(_tiny, _cls))
    )
    _files = replace(llama.FILES, name=_model, sizes=_own, describe=_back)
    _table = partial(llama.table, norms=NORMS, head_norm=_norms_heads)
    LAYOUTS.register(_name)(Layout(_files, _table))
