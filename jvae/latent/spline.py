"""Monotone rational-quadratic splines, which are the identity outside [-BOUND, BOUND].

Source: Durkan et al. 2019, arXiv 1906.04032, section 3.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BOUND = 6.0
LEAST = 1e-3  # minimum share of a bin, and minimum slope at a knot
_SLOPE_ONE = float(np.log(np.expm1(1.0 - LEAST)))  # raw value for a slope of 1


def raw_size(bins: int) -> int:
    """Number of raw parameters of a spline: widths, heights, slopes of the inner knots."""
    return 3 * bins - 1


class _Bin(NamedTuple):
    """Corner, size and slopes of the bin that each value lies in."""

    x: Array
    y: Array
    width: Array
    height: Array
    slope: Array  # at the left knot
    next_slope: Array


def _bin(value: Array, raw: Float[Array, "*e r"], inverse: bool) -> _Bin:
    bins = (raw.shape[-1] + 1) // 3

    def sizes(part: Array) -> tuple[Array, Array]:
        size = 2 * BOUND * (LEAST + (1 - LEAST * bins) * jax.nn.softmax(part, axis=-1))
        ends = jnp.cumsum(size, axis=-1) - BOUND
        return size, ends

    def starts(ends: Array) -> Array:
        return jnp.concatenate([jnp.full_like(ends[..., :1], -BOUND), ends[..., :-1]], axis=-1)

    width, x_end = sizes(raw[..., :bins])
    height, y_end = sizes(raw[..., bins : 2 * bins])
    inner = LEAST + jax.nn.softplus(raw[..., 2 * bins :] + _SLOPE_ONE)
    ones = jnp.ones_like(width[..., :1])
    slope = jnp.concatenate([ones, inner], axis=-1)
    next_slope = jnp.concatenate([inner, ones], axis=-1)
    ends = y_end if inverse else x_end
    place = jnp.sum(value[..., None] >= ends[..., :-1], axis=-1)
    chosen = jax.nn.one_hot(place, bins, dtype=value.dtype)

    def pick(values: Array) -> Array:
        return jnp.sum(values * chosen, axis=-1)  # the gradient of a gather is slow on CPUs

    parts = (starts(x_end), starts(y_end), width, height, slope, next_slope)
    return _Bin(*(pick(part) for part in parts))


def forward(x: Float[Array, "*e"], raw: Float[Array, "*e r"]) -> tuple[Array, Array]:
    """(y, log dy/dx) of each value."""
    inside = jnp.abs(x) < BOUND
    clipped = jnp.clip(x, -BOUND, BOUND)
    at = _bin(clipped, raw, inverse=False)
    steep = at.height / at.width
    share = (clipped - at.x) / at.width
    product = share * (1 - share)
    below = steep + (at.slope + at.next_slope - 2 * steep) * product
    y = at.y + at.height * (steep * share**2 + at.slope * product) / below
    rise = at.next_slope * share**2 + 2 * steep * product + at.slope * (1 - share) ** 2
    log_slope = 2 * jnp.log(steep) + jnp.log(rise) - 2 * jnp.log(below)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)


def backward(y: Float[Array, "*e"], raw: Float[Array, "*e r"]) -> Array:
    """The inverse of `forward`: x for each y."""
    inside = jnp.abs(y) < BOUND
    clipped = jnp.clip(y, -BOUND, BOUND)
    at = _bin(clipped, raw, inverse=True)
    steep = at.height / at.width
    up, bend = clipped - at.y, at.slope + at.next_slope - 2 * steep
    a = up * bend + at.height * (steep - at.slope)
    b = at.height * at.slope - up * bend
    c = -steep * up
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0))
    x = at.x + at.width * 2 * c / (-b - root)
    return jnp.where(inside, x, y)
