"""Priors by name, for models with one latent vector per text.

A member is `build(options, shape) -> PriorParts`, registered in `PRIORS`; a config chooses it with
`model.prior.kind` and sets its options beside that key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key

from jvae.api import Params, Prior
from jvae.latent.choice import Choice, refusals
from jvae.latent.gaussian import StandardNormal, log_standard, noise
from jvae.registry import Registry


class PriorParts(NamedTuple):
    """A prior and its parameters, which lie under `params["prior"]`.

    init(key) -> parameters, boxed where their axes have names; None for a prior without any.
    """

    prior: Prior
    init: Callable[[Key[Array, ""]], Any] | None = None


class PriorKind(NamedTuple):
    """A registered prior: its options, a frozen dataclass, and what makes it for a latent shape."""

    options: type
    build: Callable[[Any, tuple[int, int]], PriorParts]


PRIORS: Registry[PriorKind] = Registry("prior", "model.prior.kind")
STANDARD_NORMAL = Choice("standard_normal")


def build_prior(choice: Choice, shape: tuple[int, int]) -> PriorParts:
    """The prior of a config over latents of shape (G, Z). Raises: ConfigError."""
    kind = PRIORS[choice.kind]
    options = choice.options_as(kind.options, "model.prior")
    with refusals("model.prior"):
        return kind.build(options, shape)


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
