"""The interface of a kind of fitted prior: a density over standardised latents, given a label.

    FITTED.register("student")(FittedKind(StudentOptions, build))

Latents have mean 0 and variance 1 in every dimension. Labels are integers from 0; a prior without
labels has the single label 0.
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

    fit(u_ngz, label_n, key): returns parameters, a nested dictionary of arrays.
    sample(params, key_e, label_e): one draw per key; draws depend only on their own key and label,
      not on the rest of the batch.
    log_prob(params, u_egz, label): log density in nats for one label, a scalar; None if the density
      is not computed.
    to_noise, from_noise(params, u_egz, label): maps to N(0, I) latents and back; None without one.
    moved(params, u_egz, label): moves latents of any label to this one; None if this is done with
      `to_noise` and `from_noise`, or not at all.
    """

    fit: Callable[[Float[Array, "n g z"], Int[Array, "n"], Key[Array, ""]], Params]
    sample: Callable[[Params, Key[Array, "e"], Int[Array, "e"]], Float[Array, "e g z"]]
    log_prob: Callable[[Params, Float[Array, "e g z"], Int[Array, ""]], Float[Array, "e"]] | None
    to_noise: Transport | None = None
    from_noise: Transport | None = None
    moved: Transport | None = None


class FittedKind(NamedTuple):
    """A registered kind.

    options: a frozen dataclass.
    build(options, shape, labels) -> Density.
    use: names of the options that may be changed after fitting, such as the steps of a sampler.
    labelled: whether fitting requires labels.
    of_labels: options that have an effect only on priors with labels.
    """

    options: type
    build: Callable[[Any, tuple[int, int], int], Density]
    use: tuple[str, ...] = ()
    labelled: bool = False
    of_labels: tuple[str, ...] = ()


FITTED: Registry[FittedKind] = Registry("fitted prior", "--prior.kind")


@functools.cache
def density(kind: str, options: Any, shape: tuple[int, int], labels: int) -> Density:
    """The density of a kind; equal arguments return the same object, to avoid recompilation.

    Raises: ConfigError for an unknown kind.
    """
    return FITTED[kind].build(options, shape, labels)
