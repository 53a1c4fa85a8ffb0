"""Computes the loss from measured terms: annealed ELBO, free bits, auxiliary terms. All values are
in nats per sentence.

The reported KL is always the unmodified one; free bits and weights only affect the training loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Batch, Terms, TextVAE, mean_valid
from jvae.errors import ConfigError
from jvae.latent.kl import per_dimension

Floor = Callable[[Float[Array, "e g z"], float], Float[Array, "e g"]]
Reduce = Callable[[Float[Array, "e g"]], Float[Array, "e"]]


def _plain(kl_egz: Array, floor: float) -> Array:
    del floor
    return jnp.sum(kl_egz, axis=2)


def _dim_masked(kl_egz: Array, floor: float) -> Array:
    """Dimensions at or below the floor contribute 0. Source: the released Optimus code
    (`fb_mode=1`).
    """
    return jnp.sum(jnp.where(kl_egz > floor, kl_egz, 0.0), axis=2)


def _dim_max(kl_egz: Array, floor: float) -> Array:
    """max(KL, floor) per dimension. Source: Li et al. 2020, eq. 9. Same gradient as `dim_masked`
    almost everywhere.
    """
    return jnp.sum(jnp.maximum(kl_egz, floor), axis=2)


def _dim_masked_share(kl_egz: Array, floor: float) -> Array:
    """`dim_masked` with the floor divided by the number of latent dimensions. Source: the released
    AdaVAE code (`fb=4`).
    """
    return _dim_masked(kl_egz, floor / (kl_egz.shape[1] * kl_egz.shape[2]))


def _group_max(kl_egz: Array, floor: float) -> Array:
    """max(KL, floor) per latent group, where the KL is summed over the group's dimensions; with one
    group this is a floor on the whole KL. Source: the released DELLA code (`kl_threshold`).
    """
    return jnp.maximum(jnp.sum(kl_egz, axis=2), floor)


FLOORS: dict[str, Floor] = {
    "none": _plain,
    "dim_masked": _dim_masked,
    "dim_max": _dim_max,
    "dim_masked_share": _dim_masked_share,
    "group_max": _group_max,
}
MEAN_SUM = "mean_sum"
FREE_BITS = (*FLOORS, MEAN_SUM)
REDUCTIONS: dict[str, Reduce] = {
    "sum": lambda kl_eg: jnp.sum(kl_eg, axis=1),
    "group_mean": lambda kl_eg: jnp.mean(kl_eg, axis=1),
}
RECONSTRUCTIONS = ("sum", "token_mean", "token_mean_end")
LATENTS = ("posterior", "zero")


@dataclass(frozen=True)
class Objective:
    """The weights of the loss terms.

    z: source of the latents in training: "posterior", or "zero", which trains the decoder as a
      language model (see `jvae.runs.phases`).
    rec_reduce: "sum" over the tokens of a sentence, as in the bound; "token_mean", the mean over
      all scored tokens of the batch, which raises the effective beta to about beta times the tokens
      of a sentence; "token_mean_end" counts one more token per sentence, the end that is never
      scored (released AdaVAE).
    free_bits: mode, a name of `FREE_BITS`. "mean_sum" is max(mean over the batch of the KL,
      free_bits_nats * dimensions): below it the KL has no gradient at all (AdaVAE).
    free_bits_nats: threshold in nats per dimension, for "group_max" per group.
    kl_reduce: over latent groups: "sum", as in the bound, or "group_mean" (released DELLA code),
      which divides the effective beta by the number of groups.
    length_weighted: divide the reconstruction by the number of tokens of the sentence, start and
      end id counted (released Optimus option; the KL is not divided, so the effective beta grows).
    rec_length: divide the reconstruction by this fixed number of tokens, 0 for none; this also
      raises the effective beta. 256 is released T5-VAE, which averages over padding.
    aux_weight: weight of each auxiliary term by name; terms without a weight are an error.
    """

    z: str = "posterior"
    rec_reduce: str = "sum"
    free_bits: str = "none"
    free_bits_nats: float = 0.0
    kl_reduce: str = "sum"
    length_weighted: bool = False
    rec_length: int = 0
    aux_weight: Mapping[str, float] = field(default_factory=dict)

    @property
    def per_dimension(self) -> bool:
        """Whether the loss reads the KL of each latent dimension."""
        return self.free_bits != "none" or self.kl_reduce != "sum"


def without_dimensions(free_bits: str, kl_reduce: str) -> str:
    """The error message for free bits of a KL that is not available per dimension."""
    return (
        f"objective.free_bits={free_bits}, objective.kl_reduce={kl_reduce}: the KL between this "
        "posterior and this prior has no closed form that comes per latent dimension; set "
        "free_bits=none, free_bits_nats=0 and kl_reduce=sum, or choose another pair"
    )


def check_kl(objective: Objective, model: TextVAE) -> None:
    """Raises: ConfigError for free bits that this model's KL does not support."""
    if objective.per_dimension and not per_dimension(model.post, model.prior):
        raise ConfigError(without_dimensions(objective.free_bits, objective.kl_reduce))


class Loss(NamedTuple):
    """Per-example parts of the objective, and their total."""

    total_e: Float[Array, "e"]
    kl_e: Float[Array, "e"]  # the unmodified KL, summed over groups and dimensions


class Totals(NamedTuple):
    """The divisors of means: sentences and scored tokens of the global batch."""

    sentences: Array
    tokens: Array

    @classmethod
    def of(cls, batch: Batch) -> "Totals":
        """Totals of a batch, also if it is measured in parts."""
        return cls(jnp.sum(batch.valid_e), jnp.sum(batch.scored_bt))


def _per_token(objective: Objective, totals: Totals) -> Array | float:
    """The factor that turns a mean over sentences of token sums into a mean over tokens."""
    if objective.rec_reduce == "sum":
        return 1.0
    ends = totals.sentences if objective.rec_reduce == "token_mean_end" else 0
    return totals.sentences / jnp.maximum(totals.tokens + ends, 1)


def _floored(objective: Objective, kl_egz: Array, valid_e: Array) -> Array:
    """The KL of every sentence with free bits; under a floor on the batch mean all share it."""
    reduce = REDUCTIONS[objective.kl_reduce]
    if objective.free_bits != MEAN_SUM:
        return reduce(FLOORS[objective.free_bits](kl_egz, objective.free_bits_nats))
    mean = mean_valid(reduce(_plain(kl_egz, 0.0)), valid_e)
    least = objective.free_bits_nats * kl_egz.shape[1] * kl_egz.shape[2]
    return jnp.broadcast_to(jnp.maximum(mean, least), valid_e.shape)


def per_sentence(
    objective: Objective,
    terms: Terms,
    beta: Float[Array, ""] | float,
    totals: Totals | None = None,
) -> Loss:
    """The loss of every sentence in nats: reconstruction + beta * KL with free bits + weighted
    auxiliary terms.

    totals: totals of the global batch, if the terms cover only a part of it.
    Raises: KeyError if an auxiliary term has no weight; ValueError for free bits per dimension or
      group of a KL that is not available per dimension.
    """
    if totals is None:
        counted_e = jnp.where(terms.valid_e, terms.scored_e, 0)
        totals = Totals(jnp.sum(terms.valid_e), jnp.sum(counted_e))
    total_e = terms.nll_e * _per_token(objective, totals)
    if objective.length_weighted:
        total_e = total_e / (terms.scored_e + 1)
    if objective.rec_length:
        total_e = total_e / objective.rec_length
    if terms.kl_egz is not None:
        floored_e = _floored(objective, terms.kl_egz, terms.valid_e)
    elif objective.per_dimension:
        raise ValueError("this objective needs the KL of each dimension; see check_kl")
    else:
        floored_e = terms.kl_e
    total_e = total_e + beta * floored_e
    for name, value_e in terms.aux.items():
        total_e = total_e + objective.aux_weight[name] * value_e
    return Loss(total_e, terms.kl_e)


def batch_loss(
    objective: Objective,
    terms: Terms,
    beta: Float[Array, ""] | float,
    totals: Totals | None = None,
) -> tuple[Array, Loss]:
    """Mean over the valid sentences of the global batch, and its parts.

    With `totals` the value is this part's contribution to that mean: the contributions add up.
    """
    loss = per_sentence(objective, terms, beta, totals)
    if totals is None:
        return mean_valid(loss.total_e, terms.valid_e), loss
    total = jnp.sum(jnp.where(terms.valid_e, loss.total_e, 0.0))
    return total / jnp.maximum(totals.sentences, 1), loss
