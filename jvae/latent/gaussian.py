"""Diagonal Gaussians over latents, in at least float32 regardless of the compute dtype."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Cond, Params, Post, Posterior, Prior
from jvae.latent.kl import closed_form

LOG_2PI = float(np.log(2.0 * np.pi))


class DiagonalGaussian(NamedTuple):
    """KL form of posteriors whose `post` has `mean_egz` and `log_var_egz`."""


class StandardNormal(NamedTuple):
    """KL form of the prior N(0, I)."""


class Gaussian(NamedTuple):
    """Means and log-variances of one diagonal Gaussian per example and latent group."""

    mean_egz: Float[Array, "e g z"]
    log_var_egz: Float[Array, "e g z"]


def reparameterize(q: Gaussian, noise_egz: Float[Array, "*k e g z"]) -> Float[Array, "*k e g z"]:
    """mean + exp(log_var / 2) * noise. Source: Kingma & Welling 2014, section 2.4."""
    lead = (None,) * (noise_egz.ndim - 3)
    return q.mean_egz[lead] + jnp.exp(0.5 * q.log_var_egz)[lead] * noise_egz


def noise(key_ke: Key[Array, "*k"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal noise of the given shape for every key."""
    draw = lambda key: jax.random.normal(key, shape)  # noqa: E731
    for _ in range(key_ke.ndim):
        draw = jax.vmap(draw)
    return draw(key_ke)


def kl_standard(q: Gaussian) -> Float[Array, "e g z"]:
    """KL(q || N(0, I)) per latent dimension, in nats. Source: Kingma & Welling 2014, appendix B."""
    return 0.5 * (jnp.square(q.mean_egz) + jnp.exp(q.log_var_egz) - q.log_var_egz - 1.0)


def kl(q: Gaussian, p: Gaussian) -> Float[Array, "e g z"]:
    """KL(q || p) per latent dimension, in nats. Source: Kingma & Welling 2014, appendix B."""
    log_ratio = q.log_var_egz - p.log_var_egz
    scaled = jnp.square(q.mean_egz - p.mean_egz) * jnp.exp(-p.log_var_egz)
    return 0.5 * (scaled + jnp.exp(log_ratio) - log_ratio - 1.0)


def log_density(q: Gaussian, z_egz: Float[Array, "e g z"]) -> Float[Array, "e"]:
    """log q(z) per example, summed over groups and dimensions, in nats."""
    scaled = jnp.square(z_egz - q.mean_egz) * jnp.exp(-q.log_var_egz)
    return -0.5 * jnp.sum(scaled + q.log_var_egz + LOG_2PI, axis=(1, 2))


def log_standard(z_egz: Float[Array, "e g z"]) -> Float[Array, "e"]:
    """log N(z; 0, I) per example, in nats."""
    return -0.5 * jnp.sum(jnp.square(z_egz) + LOG_2PI, axis=(1, 2))


@closed_form(DiagonalGaussian, StandardNormal)
def _kl_standard(
    params: Params, posterior: Posterior, post: Post, z_egz: Array, prior: Prior, cond: Cond
) -> Float[Array, "e g z"]:
    del params, posterior, z_egz, prior, cond
    return kl_standard(Gaussian(post.mean_egz, post.log_var_egz))
