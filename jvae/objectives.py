"""From measured terms to a loss: annealed ELBO, KL floors, auxiliary terms. Everything in nats per
sentence.

The KL that is reported is always the plain one; floors and weights are training devices and act on
the loss alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Terms, mean_valid

Floor = Callable[[Float[Array, "e g z"], float], Float[Array, "e"]]


def _total(kl_egz: Array, floor: float) -> Array:
    del floor
    return jnp.sum(kl_egz, axis=(1, 2))


def _dim_masked(kl_egz: Array, floor: float) -> Array:
    """Dimensions at or below the floor contribute 0. Source: the released Optimus code
    (`fb_mode=1`).
    """
    return jnp.sum(jnp.where(kl_egz > floor, kl_egz, 0.0), axis=(1, 2))


def _dim_max(kl_egz: Array, floor: float) -> Array:
    """max(KL, floor) per dimension. Source: Li et al. 2020, eq. 9. Same gradient as `dim_masked`
    almost everywhere.
    """
    return jnp.sum(jnp.maximum(kl_egz, floor), axis=(1, 2))


FLOORS: dict[str, Floor] = {"none": _total, "dim_masked": _dim_masked, "dim_max": _dim_max}


@dataclass(frozen=True)
class Objective:
    """How terms are weighed.

    kl_floor: a name of `FLOORS`; floor: its threshold in nats. length_weighted: the reconstruction
    is divided by the number of tokens of the sentence, start and end id counted (released Optimus
    option; the KL never is, so the effective beta grows). rec_length: the reconstruction is divided
    by this many tokens whatever the sentence has, 0 for none; this too raises the effective beta.
    256 is released T5-VAE, which averages over padding.
    aux_weight: weight of each auxiliary term by its name; terms without a weight are an error.
    """

    kl_floor: str = "none"
    floor: float = 0.0
    length_weighted: bool = False
    rec_length: int = 0
    aux_weight: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kl_floor not in FLOORS:
            known = ", ".join(FLOORS)
            raise ValueError(f"objective.kl_floor is {self.kl_floor!r}; expected one of {known}")
        if self.floor < 0:
            raise ValueError(f"objective.floor is {self.floor}; expected at least 0 nats")
        if self.rec_length < 0:
            raise ValueError(f"objective.rec_length is {self.rec_length}; expected 0 or a length")
        if self.rec_length and self.length_weighted:
            raise ValueError(
                "objective.rec_length with objective.length_weighted would divide twice; set one"
            )


class Loss(NamedTuple):
    """Per-example parts of the objective, and their total."""

    total_e: Float[Array, "e"]
    kl_e: Float[Array, "e"]  # the plain KL, summed over groups and dimensions


def per_sentence(objective: Objective, terms: Terms, beta: Float[Array, ""] | float) -> Loss:
    """The loss of every sentence: reconstruction + beta * floored KL + weighted auxiliary terms, in
    nats.

    A model without a closed-form KL (`terms.kl_egz is None`) trains on its reconstruction alone.
    Raises: KeyError when an auxiliary term has no weight.
    """
    total_e = terms.nll_e
    if objective.length_weighted:
        total_e = total_e / (terms.scored_e + 1)
    if objective.rec_length:
        total_e = total_e / objective.rec_length
    kl_e = jnp.zeros_like(terms.nll_e)
    if terms.kl_egz is not None:
        kl_e = _total(terms.kl_egz, 0.0)
        total_e = total_e + beta * FLOORS[objective.kl_floor](terms.kl_egz, objective.floor)
    for name, value_e in terms.aux.items():
        total_e = total_e + objective.aux_weight[name] * value_e
    return Loss(total_e, kl_e)


def batch_loss(
    objective: Objective, terms: Terms, beta: Float[Array, ""] | float
) -> tuple[Array, Loss]:
    """Mean over the valid sentences of the global batch, and its parts."""
    loss = per_sentence(objective, terms, beta)
    return mean_valid(loss.total_e, terms.valid_e), loss
