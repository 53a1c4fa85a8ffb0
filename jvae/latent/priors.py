"""Priors by name, for models whose latent is one vector per text, or several.

A member is `build(options, shape) -> PriorParts`, registered in `PRIORS`; a config chooses it with
`model.prior.kind` and sets its options beside that key. One that is made of posteriors is
`build(options, shape, inputs)`, see `InputPosterior`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key

from jvae.api import SPACE, SPHERE, LogPosterior, Params, Post, Prior, SamplePosterior
from jvae.errors import ConfigError
from jvae.latent.choice import Choice, refusals
from jvae.latent.gaussian import StandardNormal, log_standard, noise
from jvae.registry import Registry


class PriorParts(NamedTuple):
    """A prior and its parameters, which lie under `params["prior"]`.

    init(key) -> parameters, boxed where their axes have names; None for a prior without any.
    """

    prior: Prior
    init: Callable[[Key[Array, ""]], Any] | None = None


class InputPosterior(NamedTuple):
    """The posterior of texts that are no tokens but learned vectors, what layer 0 of the encoder
    reads.

    start(key, (K, T)) -> x_ktd, embeddings of random tokens at fresh parameters
    encode(params, x_ktd) -> post, one text a row and no dropout
    longest: most vectors of a text.
    sample, log_prob, support: see `jvae.api.Posterior`.
    """

    start: Callable[[Key[Array, ""], tuple[int, int]], Float[Array, "k t d"]]
    encode: Callable[[Params, Float[Array, "k t d"]], Post]
    longest: int
    sample: SamplePosterior
    log_prob: LogPosterior
    support: str = SPACE


class PriorKind(NamedTuple):
    """A registered prior: its options, a frozen dataclass, and what makes it for a latent shape.

    of_posterior: whether `build` takes an `InputPosterior` too.
    """

    options: type
    build: Callable[..., PriorParts]
    of_posterior: bool = False


PRIORS: Registry[PriorKind] = Registry("prior", "model.prior.kind")
STANDARD_NORMAL = Choice("standard_normal")


def build_prior(
    choice: Choice, shape: tuple[int, int], inputs: InputPosterior | None = None
) -> PriorParts:
    """The prior of a config over latents of shape (G, Z).

    Args:
      inputs: of the model's encoder; None where it has none.
    Raises: ConfigError.
    """
    kind = PRIORS[choice.kind]
    options = choice.options_as(kind.options, "model.prior")
    if kind.of_posterior and inputs is None:
        raise ConfigError(
            f"model.prior.kind is {choice.kind}, which is made of posteriors of single texts; this "
            "model has no encoder, or a posterior that reads a batch together. Choose another prior"
        )
    needed = [inputs] if kind.of_posterior else []
    with refusals("model.prior"):
        return kind.build(options, shape, *needed)


def check_support(kind: Choice, prior: Prior, posterior: Choice, support: str) -> None:
    """Raises: ConfigError for a prior whose latents lie elsewhere than those of a posterior."""
    if prior.support == support:
        return
    if support == SPHERE:
        raise ConfigError(
            f"model.posterior.kind is {posterior.kind}, whose latents have length 1; those of "
            f"model.prior.kind={kind.kind} have any: set that to uniform_sphere or vamp"
        )
    raise ConfigError(
        f"model.prior.kind is {kind.kind}, whose latents have length 1; those of model.posterior."
        f"kind={posterior.kind} have any: set that to vmf, or choose another prior"
    )


def standard_normal(shape: tuple[int, int]) -> Prior:
    """N(0, I) over latents of shape (G, Z)."""

    def sample(params: Params, key_e: Key[Array, "e"], cond: Any = None) -> Float[Array, "e g z"]:
        del params, cond
        return noise(key_e, shape)

    def log_prob(params: Params, z_egz: Array, cond: Any = None) -> Float[Array, "e"]:
        del params, cond
        return log_standard(z_egz)

    return Prior(sample, log_prob, StandardNormal())


class NoOptions(NamedTuple):
    """Options of a member that has none."""


PRIORS.register("standard_normal")(
    PriorKind(NoOptions, lambda options, shape: PriorParts(standard_normal(shape)))
)
