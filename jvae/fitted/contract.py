"""What a kind of fitted prior is: a density over standardised latents, given a label.

    FITTED.register("student")(FittedKind(StudentOptions, build))

Latents come with mean 0 and variance 1 in every dimension. Labels are numbers from 0; a prior
without labels has one, 0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key

from jvae.api import Params
from jvae.registry import Registry

Transport = Callable[[Params, Float[Array, "e g z"], Int[Array, ""]], Float[Array, "e g z"]]


class Density(NamedTuple):
    """p(u | label) over latents (G, Z); functions that take fitted parameters first.

    fit(u_ngz, label_n, key): parameters, a nested dictionary of arrays.
    sample(params, key_e, label_e): one draw per key; equal keys and labels give equal draws,
      whatever stands beside them.
    log_prob(params, u_egz, label): nats for one label, a scalar; None where the density is not
      computed.
    to_noise, from_noise(params, u_egz, label): a map to N(0, I) latents and back; None without one.
    moved(params, u_egz, label): latents of any label as they would be with this one; None where the
      way leads through the noise of their own label, if there is such a map.
    """

    fit: Callable[[Float[Array, "n g z"], Int[Array, "n"], Key[Array, ""]], Params]
    sample: Callable[[Params, Key[Array, "e"], Int[Array, "e"]], Float[Array, "e g z"]]
    log_prob: Callable[[Params, Float[Array, "e g z"], Int[Array, ""]], Float[Array, "e"]] | None
    to_noise: Transport | None = None
    from_noise: Transport | None = None
    moved: Transport | None = None


class FittedKind(NamedTuple):
    """A registered kind.

    options: a frozen dataclass. build(options, shape, labels) -> Density. use: names of the options
    that may differ between fitting and use, such as the steps of a sampler. labelled: it is fitted
    with labels alone.
    """

    options: type
    build: Callable[[Any, tuple[int, int], int], Density]
    use: tuple[str, ...] = ()
    labelled: bool = False


FITTED: Registry[FittedKind] = Registry("fitted prior", "--prior.kind")


@functools.cache
def density(kind: str, options: Any, shape: tuple[int, int], labels: int) -> Density:
    """The density of a kind; equal arguments give the same one, so that nothing compiles twice.

    Raises: ConfigError for an unknown kind.
    """
    return FITTED[kind].build(options, shape, labels)
