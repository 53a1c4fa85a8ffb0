"""Activation functions by name, each with its slope computed in one pass from its input.

Differentiating the composition of `erfc`, `exp` and products as it stands would keep several arrays
as large as the feed-forward layer for the backward pass; here it keeps only the slope.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.nn.layers import accum_dtype

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _keeping_slope(function: Activation) -> Activation:
    """The function with f'(x) dx as its derivative, both computed in float32 or wider."""

    @jax.custom_jvp
    def activation(x: Array) -> Array:
        return function(x.astype(accum_dtype(x.dtype))).astype(x.dtype)

    @activation.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (x,), (dx,) = primals, tangents
        wide = x.astype(accum_dtype(x.dtype))
        value, slope = jax.jvp(function, (wide,), (jnp.ones_like(wide),))
        # One pass writes both; a compiler may else write what they share, in float32.
        value, slope = jax.lax.optimization_barrier((value.astype(x.dtype), slope.astype(x.dtype)))
        return value, slope * dx

    return activation


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _keeping_slope(_gelu),
    "gelu_tanh": _keeping_slope(_gelu_tanh),
    "relu": jax.nn.relu,
    "silu": _keeping_slope(jax.nn.silu),
}
