"""The posterior of a language model: there is no latent, so every density of it is 0."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jvae.api import Batch, Posterior

LATENT_SHAPE = (0, 0)


def _empty(n: int) -> Array:
    return jnp.zeros((n, *LATENT_SHAPE))


def _encode(params: Any, batch: Batch, drop=None, *, cond=None, key_e=None) -> Array:
    del params, drop, cond, key_e
    return _empty(batch.id_e.shape[0])


def _sample(params: Any, post: Array, key_ke: Array) -> tuple[Array, Array]:
    del params, post
    z_kegz = jnp.zeros((*key_ke.shape, *LATENT_SHAPE))
    return z_kegz, z_kegz


POSTERIOR = Posterior(
    encode=_encode,
    sample=_sample,
    log_q=lambda params, post, z_egz: jnp.zeros(z_egz.shape[0]),
    mean=lambda params, post: post,
)


def sample_prior(params: Any, key_e: Array, cond: Any = None) -> Array:
    """z of shape (E, 0, 0)."""
    del params, cond
    return _empty(key_e.shape[0])


def log_prior(params: Any, z_egz: Array, cond: Any = None) -> Array:
    """0 per example."""
    del params, cond
    return jnp.zeros(z_egz.shape[0])
