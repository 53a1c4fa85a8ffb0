"""Norms over the last axis. Statistics are computed in float32 or wider."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.nn.layers import accum_dtype


class LayerNorm(nn.Module):
    """Layer normalisation with scale and, except in ModernBERT, bias (Ba et al. 2016)."""

    eps: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = (x.shape[-1],)
        scale: Any = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), width
        )
        bias: Any = None
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
            bias = self.param("bias", zeros, width)
        h = x.astype(accum_dtype(x.dtype))
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        lead = (1,) * (x.ndim - 1) + (-1,)
        h = h * scale.reshape(lead)
        return (h if bias is None else h + bias.reshape(lead)).astype(x.dtype)


def inverse_rms(x: Array, eps: float) -> Array:
    """1 / sqrt(mean square + eps) over the last axis, which is kept with size 1."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


class RmsNorm(nn.Module):
    """x / rms(x) * scale: no mean, no bias (Zhang & Sennrich 2019).

    plus_one: the factor is 1 + scale, with scale initialised to zero (Gemma).
    """

    eps: float
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        names = nn.with_logical_partitioning(start, ("norm",))
        scale: Any = self.param("scale", names, (x.shape[-1],))
        h = x.astype(accum_dtype(x.dtype))
        h = h * inverse_rms(h, self.eps)
        # In the accurate number type: 1 + scale is rounded if both are bfloat16.
        scale = scale.astype(h.dtype)
        factor = 1.0 + scale if self.plus_one else scale
        return (h * factor.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
