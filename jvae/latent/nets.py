"""Affine maps for priors, with parameters as dictionaries of arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Params


def affine(key: Key[Array, ""], inputs: int, outputs: int, zero: bool = False) -> dict[str, Array]:
    """Initial kernel and bias; with `zero`, the output is 0 at initialisation."""
    scale = 0.0 if zero else 1.0 / max(inputs, 1) ** 0.5
    kernel = scale * jax.random.normal(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros((outputs,))}


def apply(p: Params, x: Array) -> Array:
    """Applies the map to the last axis of x."""
    y = x @ p["kernel"]
    return y + p["bias"][(None,) * (y.ndim - 1)]
