"""Registry of amortised posteriors, which map a sentence's features to a density over its latent.

A member is `build(options, head, shape) -> Density`, registered in `POSTERIORS`. A config selects
it with `model.posterior.kind` and sets its options in the same section. The model provides the
encoder and its pooling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jvae.api import (
    SPACE,
    Batch,
    Cond,
    LogPosterior,
    Mean,
    Params,
    Post,
    Posterior,
    SamplePosterior,
)
from jvae.fields import setting
from jvae.latent.choice import Choice, refusals
from jvae.latent.gaussian import DiagonalGaussian, Gaussian, log_density, noise, reparameterize
from jvae.registry import Registry


class Affine(NamedTuple):
    """An affine map of features, initialised as its model requires.

    init(key) -> boxed parameters. apply(params, h_ed) -> (E, *outputs)
    """

    init: Callable[[Key[Array, ""]], Any]
    apply: Callable[[Any, Float[Array, "e d"]], Array]

    def each(self, params: Params, h_egd: Float[Array, "e g d"]) -> Array:
        """Applies the same map to every vector of a text; returns (E, G, *outputs)."""
        out = self.apply(params, h_egd.reshape(-1, h_egd.shape[-1]))
        return out.reshape(*h_egd.shape[:2], *out.shape[1:])


@runtime_checkable
class Head(Protocol):
    """Makes an affine map with outputs of the given shape and logical axes."""

    def __call__(self, outputs: tuple[int, ...], axes: tuple[str | None, ...]) -> Affine: ...


class Density(NamedTuple):
    """A density over latents, computed from features: one feature vector per latent vector.

    Its parameters are stored under `params["posterior"]`.

    init(key) -> {name: boxed parameters}
    read(params["posterior"], h_egd) -> post
    sample, log_prob, mean, form, support: see `jvae.api.Posterior`
    read_together(params["posterior"], h_egd, valid_e) -> post
      Replaces `read` in training, for a density that depends on the whole batch.
    track(params["posterior"], h_egd, valid_e) -> params["posterior"]
      Updates the running statistics that `read` uses with one more batch.
    """

    init: Callable[[Key[Array, ""]], dict[str, Any]]
    read: Callable[[Any, Float[Array, "e g d"]], Post]
    sample: SamplePosterior
    log_prob: LogPosterior | None
    mean: Mean
    form: Any = None
    support: str = SPACE
    read_together: Callable[[Any, Float[Array, "e g d"], Bool[Array, "e"]], Post] | None = None
    track: Callable[[Any, Float[Array, "e g d"], Bool[Array, "e"]], Any] | None = None


class PosteriorKind(NamedTuple):
    """A registered posterior: its options class, a frozen dataclass, and its build function."""

    options: type
    build: Callable[[Any, Head, tuple[int, int]], Density]


POSTERIORS: Registry[PosteriorKind] = Registry("posterior", "model.posterior.kind")
GAUSSIAN = Choice("gaussian")


def build_density(choice: Choice, head: Head, shape: tuple[int, int]) -> Density:
    """Builds the density that a config selects, over latents of shape (G, Z).

    Raises: ConfigError.
    """
    kind = POSTERIORS[choice.kind]
    options = choice.options_as(kind.options, "model.posterior")
    with refusals("model.posterior"):
        return kind.build(options, head, shape)


Features = Callable[
    [Params, Batch, Key[Array, ""] | None], Float[Array, "e g d"]
]  # (params, batch, drop) -> h_egd


def amortized(density: Density, features: Features) -> Posterior:
    """Makes a posterior from a density and an encoder, whose pooled states are the features."""

    def encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Post:
        del cond, key_e  # amortised inference is deterministic
        density_params, h_egd = params["posterior"], features(params, batch, drop)
        if drop is not None and density.read_together is not None:
            return density.read_together(density_params, h_egd, batch.valid_e)
        return density.read(density_params, h_egd)

    def pooled(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        /,
        *,
        cond: Cond | None = None,
    ) -> Float[Array, "e d"]:
        del cond
        return jnp.mean(features(params, batch, drop), axis=1)

    def track(params: Params, batch: Batch) -> Params:
        assert density.track is not None
        h_egd = features(params, batch, None)
        return params | {"posterior": density.track(params["posterior"], h_egd, batch.valid_e)}

    return Posterior(
        encode=encode,
        sample=density.sample,
        log_prob=density.log_prob,
        mean=density.mean,
        form=density.form,
        features=pooled,
        support=density.support,
        coupled=density.read_together is not None,
        track=None if density.track is None else track,
    )


@dataclass(frozen=True)
class GaussianOptions:
    """Options of the posterior `gaussian`."""

    log_var_shift: float = setting(
        0.0,
        low=-50.0,
        high=50.0,
        help="Added to log-variances; a negative one starts nearly deterministic.",
    )
    unit_variance: bool = setting(False, help="Fix log-variances at 0, ignoring the head's output.")


def gaussian(options: GaussianOptions, head: Head, shape: tuple[int, int]) -> Density:
    """A diagonal Gaussian; one affine map gives means and log-variances."""
    affine = head((2, shape[1]), (None, "latent"))

    def read(params: Params, h_egd: Array) -> Gaussian:
        stats_egcz = affine.each(params["head"], h_egd)
        mean_egz, log_var_egz = stats_egcz[:, :, 0], stats_egcz[:, :, 1]
        if options.unit_variance:
            return Gaussian(mean_egz, jnp.zeros_like(mean_egz))
        return Gaussian(mean_egz, log_var_egz + options.log_var_shift)

    def sample(
        params: Params, post: Gaussian, key_ke: Key[Array, "k e"]
    ) -> Float[Array, "k e g z"]:
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
