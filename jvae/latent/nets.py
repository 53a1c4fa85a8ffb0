"""Affine maps of priors, as dictionaries of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


def affine(key: Key[Array, ""], inputs: int, outputs: int, zero: bool = False) -> dict[str, Array]:
    """Kernel and bias; `zero` for maps whose output is to be 0 at first."""
    scale = 0.0 if zero else 1.0 / max(inputs, 1) ** 0.5
    kernel = scale * jax.random.normal(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros((outputs,))}


def apply(p: Any, x: Array) -> Array:
    """The map of the last axis of x."""
    y = x @ p["kernel"]
    return y + p["bias"][(None,) * (y.ndim - 1)]
