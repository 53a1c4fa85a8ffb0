"""One T5 layer, its config, norm, relative bias and unscaled attention.

Source: Raffel et al. 2020 (v1.0) and Shazeer 2020 (the gated feed-forward of v1.1).
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.fields import setting
from jvae.nn import config as stack
from jvae.nn.activations import ACTIVATIONS
from jvae.nn.backbone import StackConfig
from jvae.nn.block import Attend, Tap
from jvae.nn.cross import AttendCross
from jvae.nn.layers import Initializer, Projection, accum_dtype, dropout, split_key
from jvae.nn.norms import RmsNorm


@dataclass(frozen=True)
class T5Config(StackConfig):
    """Sizes and compute choices of one stack; see `TransformerConfig` for fields they share.

    `gated` and `tied` are (False, True) in v1.0 and (True, False) in v1.1. Only the relative bias
    distinguishes positions, so a short training run needs a larger `bias_std` than T5's own.
    """

    layers: int = setting(**stack.LAYERS)
    width: int = setting(**stack.WIDTH)
    heads: int = setting(**stack.HEADS)
    head: int = setting(low=1, high=2**16, help="Width of a head; not always width / heads in T5.")
    mlp: int = setting(**stack.MLP)
    vocab: int = setting(**stack.VOCAB)
    buckets: int = setting(
        32, low=4, high=2**16, help="Number of distances that the relative bias distinguishes."
    )
    max_distance: int = setting(
        128, low=2, high=2**20, help="Distance in tokens beyond which all share a bias."
    )
    gated: bool = setting(False, help="Whether the feed-forward is gated, as in v1.1.")
    tied: bool = setting(True, help="Whether the output head is the token embedding, as in v1.0.")
    cross: bool = setting(
        False, help="Whether the decoder has cross-attention; the family sets it."
    )
    bias_std: float = setting(
        0.0,
        low=0.0,
        high=100.0,
        help="Initial standard deviation of the relative bias; 0: width^-1/2, as in T5.",
    )
    dropout: float = setting(0.1, **stack.DROPOUT)
    norm_eps: float = setting(1e-6, **stack.NORM_EPS)
    dtype: str = setting("float32", **stack.DTYPE)
    remat: str = setting("none", **stack.REMATS)
    unroll: int = setting(1, **stack.UNROLL)
    vocab_multiple: int = setting(128, **stack.VOCAB_MULTIPLE)
    xent_chunk: int = setting(8192, **stack.XENT_CHUNK)

    def __post_init__(self) -> None:
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"max_distance {self.max_distance} is not above half of buckets, which is "
                f"{self.buckets}; raise it"
            )

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, equal to the number of query heads."""
        return self.heads

    @property
    def init_std(self) -> float:
        """Initial standard deviation of kernels that read a state."""
        return self.width**-0.5

    @property
    def vocab_padded(self) -> int:
        """Rows of the token embedding."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple


def normal(*stds: float) -> Initializer:
    """Zero-mean normal initialiser; several deviations apply to parts fused on axis 1."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        parts = (1,) * (len(shape) - 2)
        std = jnp.array(stds, dtype).reshape(
            (1, -1, *parts) if len(stds) > 1 else (1,) * len(shape)
        )
        return jax.random.normal(key, shape, dtype) * std

    return init


def _out(c: T5Config) -> Projection:
    init = normal((c.heads * c.head) ** -0.5)
    return Projection((c.width,), ("heads", "head"), ("embed",), False, init, name="out")


class SelfAttention(nn.Module):
    """Fused query, key and value projections and the output projection, without bias."""

    config: T5Config

    @nn.compact
    def __call__(self, x_btd: Array, attend: Attend) -> tuple[Array, Any]:
        c = self.config
        # The queries' initial scale replaces the factor 1/sqrt(head), which T5 attention lacks.
        init = normal((c.width * c.head) ** -0.5, c.width**-0.5, c.width**-0.5)
        axes = (None, "heads", "head")
        qkv = Projection((3, c.heads, c.head), ("embed",), axes, False, init, name="qkv")(x_btd)
        mixed_btnh, output = attend(*(qkv[..., i, :, :] for i in range(3)))
        return _out(c)(mixed_btnh), output


class CrossAttention(nn.Module):
    """Query and output projections; `cross_kv` computes keys and values once per source."""

    config: T5Config

    @nn.compact
    def __call__(self, x_btd: Array, attend: AttendCross) -> Array:
        c = self.config
        init = normal((c.width * c.head) ** -0.5)
        q = Projection((c.heads, c.head), ("embed",), ("heads", "head"), False, init, name="q")
        return _out(c)(attend(q(x_btd)))


class Mlp(nn.Module):
    """Feed-forward with ReLU (v1.0) or a tanh-GELU gate (v1.1), without bias."""

    config: T5Config

    @nn.compact
    def __call__(self, x_btd: Array, drop: Key[Array, ""] | None = None) -> Array:
        c = self.config

        def widen(name: str) -> Array:
            init = normal(c.width**-0.5)
            return Projection((c.mlp,), ("embed",), ("mlp",), False, init, name=name)(x_btd)

        h = widen("up")
        h = h * ACTIVATIONS["gelu_tanh"](widen("gate")) if c.gated else jax.nn.relu(h)
        h = dropout(drop, c.dropout, h)
        down = normal(c.mlp**-0.5)
        return Projection((c.width,), ("mlp",), ("embed",), False, down, name="down")(h)


class T5Layer(nn.Module):
    """Pre-norm layer: self-attention, cross-attention if `attend_cross` is given, feed-forward.

    `attend` and `attend_cross` handle masks, biases and caches. For `tap` see `jvae.nn.block`;
    "hidden" is the stream before the feed-forward.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x_btd: Array,
        attend: Attend,
        attend_cross: AttendCross | None = None,
        drop: Key[Array, ""] | None = None,
        tap: Tap | None = None,
    ) -> tuple[Array, Any]:
        c = self.config
        drop_attn, drop_cross, drop_inner, drop_mlp = split_key(drop, 4)

        def plus(stream: Array, name: str, state: Array) -> Array:
            joins = None if tap is None else tap(name, state)
            return stream if joins is None else stream + joins

        attn, output = SelfAttention(c, name="attn")(
            RmsNorm(c.norm_eps, name="attn_norm")(x_btd), attend
        )
        attn = dropout(drop_attn, c.dropout, attn)
        hidden = plus(x_btd, "input", x_btd) + attn
        if attend_cross is not None:
            h = RmsNorm(c.norm_eps, name="cross_norm")(hidden)
            h = CrossAttention(c, name="cross")(h, attend_cross)
            hidden = hidden + dropout(drop_cross, c.dropout, h)
        h = Mlp(c, name="mlp")(RmsNorm(c.norm_eps, name="mlp_norm")(hidden), drop_inner)
        mlp = dropout(drop_mlp, c.dropout, h)
        y_btd = hidden + plus(mlp, "mlp", mlp)
        return plus(plus(y_btd, "attn", attn), "hidden", hidden), output


def _thresholds(buckets: int, max_distance: int) -> tuple[int, list[int]]:
    """Bucket edges: distances below the first number have their own bucket; each threshold in the
    list starts the next bucket.

    Computed on the host in float32, as in the reference, so that rounding of a device's logarithm
    cannot move a distance to another bucket.
    """
    exact = buckets // 2
    n = np.arange(exact, max_distance + 1, dtype=np.float32)
    ratio = np.log(n / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    bucket = exact + (ratio * np.float32(buckets - exact)).astype(np.int32)
    return exact, [int(n[bucket >= b][0]) for b in range(exact + 1, buckets)]


def bucket_of(distance: Int[Array, "..."], config: T5Config, causal: bool) -> Int[Array, "..."]:
    """Bucket of each distance (query position - key position), in tokens.

    Args:
      causal: keys after the query share bucket 0; otherwise they use the upper half of the buckets.
    """
    buckets = config.buckets if causal else config.buckets // 2
    ahead = jnp.zeros_like(distance) if causal else (distance < 0).astype(distance.dtype) * buckets
    distance = jnp.maximum(distance, 0) if causal else jnp.abs(distance)
    exact, edges = _thresholds(buckets, config.max_distance)
    far = sum((distance >= edge).astype(distance.dtype) for edge in edges)
    return ahead + jnp.minimum(distance, exact) + far


def relative_bias(config: T5Config, stack: Any, distance_bts: Array, causal: bool) -> Array:
    """Relative bias (B, N, T, S), shared by all layers of a stack."""
    table_cn = stack["bias"]["table"]
    bias_btsn = jnp.take(table_cn, bucket_of(distance_bts, config, causal), axis=0, mode="clip")
    return jnp.moveaxis(bias_btsn, -1, 1)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    mask_bts: Bool[Array, "#b #t s"],
    bias_bnts: Float[Array, "#b n t s"] | None = None,
    *,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
) -> Float[Array, "b t n h"]:
    """Unscaled softmax attention with an additive bias; logits and softmax in float32 or wider."""
    logits = jnp.einsum(
        "btnh,bsnh->bnts", q_btnh, k_bsnh, preferred_element_type=accum_dtype(q_btnh.dtype)
    )
    if bias_bnts is not None:
        logits = logits + bias_bnts.astype(logits.dtype)
    # A finite floor keeps queries without a visible key (padding) finite; they are never scored.
    logits = jnp.where(mask_bts[:, None], logits, jnp.finfo(logits.dtype).min / 2)
    weight_bnts = dropout(drop, rate, jax.nn.softmax(logits, axis=-1))
    return jnp.einsum("bnts,bsnh->btnh", weight_bnts.astype(v_bsnh.dtype), v_bsnh)
