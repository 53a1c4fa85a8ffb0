"""Posterior `vmf` and prior `uniform_sphere`, for latent vectors of length 1.

The von Mises-Fisher density, a constant times exp(kappa mean . z), has a fixed concentration kappa.
Its KL to the uniform distribution is therefore the same for all texts and cannot collapse. Source:
Xu & Durrett 2018, arXiv 1808.10805. Densities are per unit of surface area.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import SPHERE, Cond, Params, Post, Posterior, Prior
from jvae.fields import setting
from jvae.latent.densities import POSTERIORS, Density, Head, PosteriorKind
from jvae.latent.gaussian import noise
from jvae.latent.kl import closed_form
from jvae.latent.priors import PRIORS, NoOptions, PriorKind, PriorParts

SHORTEST = 1e-12  # shorter vectors are divided by this instead of their length


@dataclass(frozen=True)
class VmfOptions:
    """Options of the posterior `vmf`."""

    kappa: float = setting(
        80.0, above=0.0, high=100_000.0, help="Concentration; larger: more KL, less noise."
    )


class VonMisesFisher(NamedTuple):
    """KL form of von Mises-Fisher posteriors.

    nats: KL from the density of one vector to the uniform distribution.
    """

    nats: float


class UniformSphere(NamedTuple):
    """KL form of the uniform prior on the sphere."""


class Directions(NamedTuple):
    """Mean direction of every vector, normalised to length 1."""

    direction_egz: Float[Array, "e g z"]


def log_bessel(order: float, x: float) -> float:
    """log I_order(x), the modified Bessel function of the first kind, for x > 0 and order >= 0.

    Sums the power series in log space. All terms are positive, so there is no cancellation,
    overflow or underflow. The largest terms are near index x / 2.
    """
    k = np.arange(int(x) + 10 * math.isqrt(int(x) + 1) + 200, dtype=np.float64)
    factorials = np.array([math.lgamma(i + 1) + math.lgamma(order + i + 1) for i in k])
    terms = 2 * k * math.log(x / 2) - factorials
    return order * math.log(x / 2) + float(np.logaddexp.reduce(terms))


def log_area(size: int) -> float:
    """Log surface area of the unit sphere in `size` dimensions."""
    return math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


def log_scale(size: int, kappa: float) -> float:
    """Log of the constant that normalises exp(kappa mean . z) to a density over the sphere."""
    half = 0.5 * size
    bessel = log_bessel(half - 1, kappa)
    return (half - 1) * math.log(kappa) - half * math.log(2 * math.pi) - bessel


def mean_cosine(size: int, kappa: float) -> float:
    """E[mean . z], the ratio of two Bessel functions."""
    half = 0.5 * size
    return math.exp(log_bessel(half, kappa) - log_bessel(half - 1, kappa))


def kl_uniform(size: int, kappa: float) -> float:
    """KL of one vector to the uniform distribution, in nats."""
    return kappa * mean_cosine(size, kappa) + log_scale(size, kappa) + log_area(size)


def cosine(key: Key[Array, ""], size: int, kappa: float) -> Float[Array, ""]:
    """An exact draw of mean . z by rejection sampling. Source: Wood 1994."""
    rest = size - 1
    # b of the source, rearranged to avoid cancellation between large numbers.
    b = rest / (2 * kappa + math.sqrt(4 * kappa**2 + rest**2))
    centre = (1 - b) / (1 + b)
    least = kappa * centre + rest * math.log1p(-(centre**2))

    def propose(number: Array) -> tuple[Array, Array]:
        shape_key, accept_key = jax.random.split(jax.random.fold_in(key, number))
        # One coordinate of a uniform direction, rescaled from [-1, 1] to [0, 1], is the beta draw.
        share = 0.5 * (1 + unit(jax.random.normal(shape_key, (size,)))[0])
        w = (1 - (1 + b) * share) / (1 - (1 - b) * share)
        nats = kappa * w + rest * jnp.log1p(-centre * w) - least
        return w, nats >= jnp.log(jax.random.uniform(accept_key))

    def refused(state: tuple[Array, Array, Array]) -> Array:
        return ~state[2]

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return (state[0] + 1, *propose(state[0]))

    first = jnp.zeros((), jnp.int32)
    _, w, _ = jax.lax.while_loop(refused, again, (first + 1, *propose(first)))
    return jnp.clip(w, -1.0, 1.0)


def unit(x: Float[Array, "... z"]) -> Float[Array, "... z"]:
    """Normalises vectors to length 1; value and gradient are finite even for a zero vector."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, SHORTEST**2))


def vmf(options: VmfOptions, head: Head, shape: tuple[int, int]) -> Density:
    """Builds the density; one affine map gives the mean directions.

    Raises: ValueError for one-dimensional vectors.
    """
    size, kappa = shape[1], options.kappa
    if size < 2:
        raise ValueError(f"vmf needs vectors of 2 dimensions or more; model.latent is {size}")
    affine = head((size,), ("latent",))

    def read(params: Params, h_egd: Array) -> Directions:
        return Directions(unit(affine.each(params["head"], h_egd)))

    def draw(key: Key[Array, ""]) -> tuple[Array, Array]:
        """Draws the text-independent part: cosines, and noise for the orthogonal direction."""
        cosine_key, noise_key = jax.random.split(key)
        cosine_g = jax.vmap(lambda k: cosine(k, size, kappa))(
            jax.random.split(cosine_key, shape[0])
        )
        return cosine_g, jax.random.normal(noise_key, shape)

    def sample(
        params: Params, post: Directions, key_ke: Key[Array, "k e"]
    ) -> Float[Array, "k e g z"]:
        """Combines a cosine with a direction orthogonal to the mean, as in the source.

        The cosine does not depend on any parameter, so the gradient flows through the mean only.
        """
        del params
        cosine_keg, noise_kegz = jax.lax.stop_gradient(jax.vmap(jax.vmap(draw))(key_ke))
        mean_kegz = post.direction_egz[None]
        along_keg1 = jnp.sum(noise_kegz * mean_kegz, axis=-1, keepdims=True)
        across_kegz = unit(noise_kegz - along_keg1 * mean_kegz)
        cosine_keg1 = cosine_keg[..., None].astype(mean_kegz.dtype)
        sine_keg1 = jnp.sqrt(jnp.maximum(1 - jnp.square(cosine_keg1), 0.0))
        return cosine_keg1 * mean_kegz + sine_keg1 * across_kegz

    constant = shape[0] * log_scale(size, kappa)

    def log_prob(params: Params, post: Directions, z_egz: Array) -> Float[Array, "e"]:
        del params
        return kappa * jnp.sum(post.direction_egz * z_egz, axis=(1, 2)) + constant

    return Density(
        init=lambda key: {"head": affine.init(key)},
        read=read,
        sample=sample,
        log_prob=log_prob,
        mean=lambda params, post: post.direction_egz,  # on the sphere, as draws are
        form=VonMisesFisher(kl_uniform(size, kappa)),
        support=SPHERE,
    )


def uniform_sphere(options: NoOptions, shape: tuple[int, int]) -> PriorParts:
    """Builds the prior; every vector is uniform on the unit sphere."""
    del options
    groups, size = shape
    constant = -groups * log_area(size)

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del params, cond
        return unit(noise(key_e, shape))

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del params, cond
        return jnp.full(z_egz.shape[:1], constant, z_egz.dtype)

    return PriorParts(Prior(sample, log_prob, UniformSphere(), SPHERE))


@closed_form(VonMisesFisher, UniformSphere, per_dimension=False)
def _kl(
    params: Params, posterior: Posterior, post: Post, z_egz: Array, prior: Prior, cond: Cond
) -> Float[Array, "e"]:
    del params, post, prior, cond
    return jnp.full(z_egz.shape[:1], z_egz.shape[1] * posterior.form.nats, z_egz.dtype)


POSTERIORS.register("vmf")(PosteriorKind(VmfOptions, vmf))
PRIORS.register("uniform_sphere")(PriorKind(NoOptions, uniform_sphere))
