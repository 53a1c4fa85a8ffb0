"""The flat amortised posterior: an encoder gives one diagonal Gaussian, the prior is standard
normal.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Posterior
from jvae.latent.gaussian import (
    Gaussian,
    kl_standard,
    log_density,
    log_standard,
    noise,
    reparameterize,
)


def posterior(encode: Callable[..., Gaussian]) -> Posterior:
    """A Posterior from `encode(params, batch, drop, cond) -> Gaussian` of shape (E, 1, Z)."""

    def _encode(params: Any, batch: Any, drop=None, *, cond=None, key_e=None) -> Gaussian:
        del key_e  # amortised inference is deterministic
        return encode(params, batch, drop, cond)

    def _sample(params: Any, post: Gaussian, key_ke: Key[Array, "k e"]):
        del params
        z_kegz = reparameterize(post, noise(key_ke, post.mean_egz.shape[1:]))
        return z_kegz, jnp.broadcast_to(kl_standard(post)[None], z_kegz.shape)

    return Posterior(
        encode=_encode,
        sample=_sample,
        log_q=lambda params, post, z_egz: log_density(post, z_egz),
        mean=lambda params, post: post.mean_egz,
    )


def sample_standard(latent: int) -> Callable[..., Float[Array, "e 1 z"]]:
    """`sample_prior` of a standard normal prior over one group of `latent` dimensions."""

    def sample_prior(params: Any, key_e: Key[Array, "e"], cond: Any = None) -> Array:
        del params, cond
        return noise(key_e, (1, latent))

    return sample_prior


def log_prior_standard(params: Any, z_egz: Array, cond: Any = None) -> Float[Array, "e"]:
    """`log_prior` of a standard normal prior."""
    del params, cond
    return log_standard(z_egz)
