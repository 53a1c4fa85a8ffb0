"""Building blocks of every stack: projections, embeddings, dropout.

Parameters are float32 and have logical axis names; computation uses the dtype of the input.
"""

from collections.abc import Callable, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Params
from jvae.nn import lora
from jvae.parallel.mesh import drawn_by_rows, in_force

Initializer = Callable[..., Array]
CHEAP = ("rbg", "unsafe_rbg")  # random number generators chosen for speed
NORMAL = nn.initializers.normal(0.02)  # BERT and GPT-2


def uniform_fan_in(fan_in: int) -> Initializer:
    """Uniform within +-1 / sqrt(fan_in), PyTorch's default for linear layers."""
    bound = fan_in**-0.5

    def init(key: Key[Array, ""], shape: Sequence[int], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def accum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of reductions: float32, or float64 if the compute dtype is float64."""
    return jnp.promote_types(dtype, jnp.float32)


class Projection(nn.Module):
    """y = x . kernel (+ bias) over the last `len(in_axes)` axes of x.

    Kernels keep separate axes, for example (width, heads, head), because a flattened kernel cannot
    be sharded by heads.
    """

    features: Sequence[int]
    in_axes: Sequence[str | None]
    out_axes: Sequence[str | None]
    use_bias: bool = True
    kernel_init: Initializer = NORMAL

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n_in = len(self.in_axes)
        shape = (*x.shape[-n_in:], *self.features)
        names = (*self.in_axes, *self.out_axes)
        kernel: Any = self.param(
            "kernel", nn.with_logical_partitioning(self.kernel_init, names), shape
        )
        y = jnp.tensordot(x, kernel.astype(x.dtype), axes=n_in)
        if self.has_variable("params", lora.NAME):
            y = y + lora.addend(self.get_variable("params", lora.NAME), x, n_in, self.name)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, tuple(self.out_axes))
            bias: Any = self.param("bias", zeros, tuple(self.features))
            y = _add(y, bias.astype(x.dtype))
        return y


def _add(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """y plus a bias over its last axes."""
    shape, lead = y.shape, y.ndim - bias.ndim
    if bias.ndim > 1 and in_force() is None:  # sharded axes cannot be flattened
        # A vector is added inside a GPU's product; otherwise its broadcast is written and read.
        y, bias = y.reshape(*shape[:lead], -1), bias.reshape(-1)
    return (y + bias.reshape((1,) * lead + bias.shape)).reshape(shape)


class Embedding(nn.Module):
    """A table of `rows` vectors; `__call__` looks up rows in the compute dtype."""

    rows: int
    width: int
    axis: str
    dtype: str
    table_init: Initializer = NORMAL

    @nn.compact
    def __call__(self, index: Int[Array, "..."]) -> Float[Array, "... d"]:
        names = nn.with_logical_partitioning(self.table_init, (self.axis, "embed"))
        table: Any = self.param("table", names, (self.rows, self.width))
        return jnp.take(table, index, axis=0, mode="clip").astype(self.dtype)


def apply(module: nn.Module, params: Params, *args: Any, **options: Any) -> Any:
    """Applies a module with the given parameters."""
    return module.apply({"params": params}, *args, **options)


def dropout(key: Key[Array, ""] | None, rate: float, x: Array) -> Array:
    """Inverted dropout; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    if jax.random.key_impl(key) in CHEAP:
        keep, share = _keep_16(key, 1.0 - rate, x.shape)
    else:
        keep, share = jax.random.bernoulli(key, 1.0 - rate, x.shape), 1.0 - rate
    return jnp.where(keep, x / share, jnp.zeros_like(x))


def _keep_16(
    key: Key[Array, ""], share: float, shape: tuple[int, ...]
) -> tuple[Bool[Array, "..."], float]:
    """A mask from 16 random bits per element, and the share of True that they give on average.

    The share is rounded to a multiple of 2 ** -16.
    """
    below = round(share * 2**16)
    words = drawn_by_rows(_words, key, (*shape[:-1], -(-shape[-1] // 2)))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    halves = halves.reshape(*shape[:-1], -1)[..., : shape[-1]]
    return halves < below, below / 2**16


def _words(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.bits(key, shape, jnp.uint32)


@overload
def split_key(key: Key[Array, ""], n: int) -> Sequence[Key[Array, ""]]: ...
@overload
def split_key(key: Key[Array, ""] | None, n: int) -> Sequence[Key[Array, ""] | None]: ...
def split_key(key: Key[Array, ""] | None, n: int) -> Any:
    """Splits a key into n; without a key, n times None."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def fold_key(key: Key[Array, ""] | None, data: int) -> Key[Array, ""] | None:
    """A key for one use, so that a block used on two paths never reuses a mask; None stays None."""
    return None if key is None else jax.random.fold_in(key, data)
