"""The contract of a posterior that is a sampler."""

from collections.abc import Callable
from typing import NamedTuple

from jvae.api import Params, Posterior, Terms
from jvae.latent.mixture import Proposal
from jvae.latent.short_run import ChainConfig


class Sampler(NamedTuple):
    """What a model whose posterior is a sampler adds to training and to metrics.

    measure(step, params, batch, key, drop) -> Terms     in place of `jvae.api.measure` in training
    proposal    draws of likelihood bounds
    control     the metric posterior with every end point a draw from the prior
    tune(params, batch, key) -> params     learns step sizes; None where they are fixed
    chain       the short run itself
    """

    measure: Callable[..., Terms]
    proposal: Proposal
    control: Posterior
    tune: Callable[..., Params] | None
    chain: ChainConfig
