"""Posteriors without information about the text.

A language model has no latent, so its log densities are 0. `at_zero` fixes the latent of a VAE at
0, for phases that train it as a language model.
"""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Batch, Cond, Params, Post, Posterior, Prior

LATENT_SHAPE = (0, 0)


def at_zero(latent_shape: tuple[int, int]) -> Posterior:
    """z = 0 for every sentence, with a KL of 0."""

    def encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Array:
        del params, drop, cond, key_e
        return jnp.zeros((batch.id_e.shape[0], *latent_shape))

    def sample(params: Params, post: Post, key_ke: Key[Array, "k e"]) -> Array:
        del params, post
        return jnp.zeros((*key_ke.shape, *latent_shape))

    return Posterior(
        encode=encode,
        sample=sample,
        log_prob=lambda params, post, z_egz: jnp.zeros(z_egz.shape[0]),
        mean=lambda params, post: post,
        has_kl=False,
    )


POSTERIOR = at_zero(LATENT_SHAPE)


def _sample_prior(params: Params, key_e: Array, cond: Cond = None) -> Array:
    """z of shape (E, 0, 0)."""
    del params, cond
    return jnp.zeros((key_e.shape[0], *LATENT_SHAPE))


def _log_prior(params: Params, z_egz: Array, cond: Cond = None) -> Array:
    """A log density of 0 for every example."""
    del params, cond
    return jnp.zeros(z_egz.shape[0])


PRIOR = Prior(_sample_prior, _log_prior)
