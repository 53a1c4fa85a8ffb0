"""Amortised posteriors by name: from a sentence's features to a density over its latent vector.

A member is `build(options, head, latent) -> Density`, registered in `POSTERIORS`; a config chooses
it with `model.posterior.kind` and sets its options beside that key. The encoder and its pooling are
the model's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import (
    Batch,
    Cond,
    LogPosterior,
    Mean,
    Params,
    Post,
    Posterior,
    SamplePosterior,
)
from jvae.latent.choice import Choice, refusals
from jvae.latent.gaussian import DiagonalGaussian, Gaussian, log_density, noise, reparameterize
from jvae.registry import Registry


class Affine(NamedTuple):
    """An affine map of features, with the initialisation of the model it belongs to.

    init(key) -> boxed parameters. apply(params, h_ed) -> (E, *outputs)
    """

    init: Callable[[Key[Array, ""]], Any]
    apply: Callable[[Any, Float[Array, "e d"]], Array]


@runtime_checkable
class Head(Protocol):
    """Makes an affine map with outputs of a shape, and the logical axes of that shape."""

    def __call__(self, outputs: tuple[int, ...], axes: tuple[str | None, ...]) -> Affine: ...


class Density(NamedTuple):
    """What a sentence's features say of its latent; parameters lie under `params["posterior"]`.

    init(key) -> {name: boxed parameters}
    read(params["posterior"], h_ed) -> post
    sample, log_prob, mean, form: see `jvae.api.Posterior`
    """

    init: Callable[[Key[Array, ""]], dict[str, Any]]
    read: Callable[[Any, Float[Array, "e d"]], Post]
    sample: SamplePosterior
    log_prob: LogPosterior | None
    mean: Mean
    form: Any = None


class PosteriorKind(NamedTuple):
    """A registered posterior: its options, a frozen dataclass, and what makes it."""

    options: type
    build: Callable[[Any, Head, int], Density]


POSTERIORS: Registry[PosteriorKind] = Registry("posterior", "model.posterior.kind")
GAUSSIAN = Choice("gaussian")


def build_density(choice: Choice, head: Head, latent: int) -> Density:
    """The density of a config over one vector of `latent` dimensions. Raises: ConfigError."""
    kind = POSTERIORS[choice.kind]
    options = choice.options_as(kind.options, "model.posterior")
    with refusals("model.posterior"):
        return kind.build(options, head, latent)


Features = Callable[
    [Params, Batch, Key[Array, ""] | None, Cond | None], Float[Array, "e d"]
]  # (params, batch, drop, cond) -> h_ed


def amortized(density: Density, features: Features) -> Posterior:
    """The posterior of an encoder, whose pooled states are the features."""

    def encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Post:
        del key_e  # amortised inference is deterministic
        return density.read(params["posterior"], features(params, batch, drop, cond))

    def pooled(params: Params, batch: Batch, drop=None, *, cond=None) -> Float[Array, "e d"]:
        return features(params, batch, drop, cond)

    form = density.form
    return Posterior(encode, density.sample, density.log_prob, density.mean, form, features=pooled)


@dataclass(frozen=True)
class GaussianOptions:
    """Options of the posterior `gaussian`."""

    log_var_shift: float = 0.0  # added to log-variances; below 0, z starts nearly deterministic
    unit_variance: bool = False  # log-variances are 0 whatever the head says


def gaussian(options: GaussianOptions, head: Head, latent: int) -> Density:
    """A diagonal Gaussian; one affine map gives means and log-variances."""
    affine = head((2, latent), (None, "latent"))

    def read(params: Any, h_ed: Array) -> Gaussian:
        stats_egcz = affine.apply(params["head"], h_ed)[:, None]
        mean_egz, log_var_egz = stats_egcz[:, :, 0], stats_egcz[:, :, 1]
        if options.unit_variance:
            return Gaussian(mean_egz, jnp.zeros_like(mean_egz))
        return Gaussian(mean_egz, log_var_egz + options.log_var_shift)

    def sample(params: Any, post: Gaussian, key_ke: Key[Array, "k e"]) -> Float[Array, "k e g z"]:
        del params
        return reparameterize(post, noise(key_ke, post.mean_egz.shape[1:]))

    return Density(
        init=lambda key: {"head": affine.init(key)},
        read=read,
        sample=sample,
        log_prob=lambda params, post, z_egz: log_density(post, z_egz),
        mean=lambda params, post: post.mean_egz,
        form=DiagonalGaussian(),
    )


POSTERIORS.register("gaussian")(PosteriorKind(GaussianOptions, gaussian))
