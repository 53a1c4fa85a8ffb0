"""Registry of priors, for models with one or several latent vectors per text.

A member is `build(options, shape) -> PriorParts`, registered in `PRIORS`. A config selects it with
`model.prior.kind` and sets its options in the same section. A prior that is built from posteriors
is `build(options, shape, inputs)`, see `InputPosterior`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Key

from jvae.api import SPACE, SPHERE, Cond, LogPosterior, Params, Post, Prior, SamplePosterior
from jvae.errors import ConfigError
from jvae.latent.choice import Choice, refusals
from jvae.latent.gaussian import StandardNormal, log_standard, noise
from jvae.registry import Registry


class PriorParts(NamedTuple):
    """A prior and its initialisation; its parameters are stored under `params["prior"]`.

    init(key) -> parameters, boxed if their axes have names; None for a prior without parameters.
    """

    prior: Prior
    init: Callable[[Key[Array, ""]], Any] | None = None


class InputPosterior(NamedTuple):
    """The posterior of pseudo-texts, which are learned input vectors of the encoder's layer 0.

    start(key, (K, T)) -> x_ktd, embeddings of random tokens at initialisation
    encode(params, x_ktd) -> post, with one text per row and without dropout
    longest: maximum number of vectors per text.
    sample, log_prob, support: see `jvae.api.Posterior`.
    """

    start: Callable[[Key[Array, ""], tuple[int, int]], Float[Array, "k t d"]]
    encode: Callable[[Params, Float[Array, "k t d"]], Post]
    longest: int
    sample: SamplePosterior
    log_prob: LogPosterior
    support: str = SPACE


class BuildPrior(Protocol):
    """Builds a prior over latents of shape (G, Z) from its options."""

    def __call__(self, options: Any, shape: tuple[int, int], /) -> PriorParts: ...


class BuildFromPosterior(Protocol):
    """The same for a prior that consists of posteriors of pseudo-texts."""

    def __call__(
        self, options: Any, shape: tuple[int, int], inputs: InputPosterior, /
    ) -> PriorParts: ...


class PriorKind(NamedTuple):
    """A registered prior: its options class, a frozen dataclass, and one of two build functions."""

    options: type
    build: BuildPrior | None = None
    build_from: BuildFromPosterior | None = None


PRIORS: Registry[PriorKind] = Registry("prior", "model.prior.kind")
STANDARD_NORMAL = Choice("standard_normal")


def build_prior(
    choice: Choice, shape: tuple[int, int], inputs: InputPosterior | None = None
) -> PriorParts:
    """Builds the prior that a config selects, over latents of shape (G, Z).

    Args:
      inputs: the posterior of the model's encoder on input vectors; None if it has none.
    Raises: ConfigError.
    """
    kind = PRIORS[choice.kind]
    options = choice.options_as(kind.options, "model.prior")
    if kind.build is None and inputs is None:
        raise ConfigError(
            f"model.prior.kind is {choice.kind}, which is a mixture of posteriors of single "
            "texts; this model has no encoder, or its posterior depends on the whole batch. "
            "Choose another prior"
        )
    with refusals("model.prior"):
        if kind.build is not None:
            return kind.build(options, shape)
        assert kind.build_from is not None and inputs is not None
        return kind.build_from(options, shape, inputs)


def check_support(kind: Choice, prior: Prior, posterior: Choice, support: str) -> None:
    """Raises: ConfigError unless the prior has the posterior's support."""
    if prior.support == support:
        return
    if support == SPHERE:
        raise ConfigError(
            f"model.posterior.kind is {posterior.kind}, whose latents have length 1; those of "
            f"model.prior.kind={kind.kind} have any length: set it to uniform_sphere or vamp"
        )
    raise ConfigError(
        f"model.prior.kind is {kind.kind}, whose latents have length 1; those of model.posterior."
        f"kind={posterior.kind} have any length: set it to vmf, or choose another prior"
    )


def standard_normal(shape: tuple[int, int]) -> Prior:
    """N(0, I) over latents of shape (G, Z)."""

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        del params, cond
        return noise(key_e, shape)

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del params, cond
        return log_standard(z_egz)

    return Prior(sample, log_prob, StandardNormal())


class NoOptions(NamedTuple):
    """The options class of members that have none."""


PRIORS.register("standard_normal")(
    PriorKind(NoOptions, lambda options, shape: PriorParts(standard_normal(shape)))
)
