"""The distance of a bound to the exact -log p, where that is known."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.evals.collect import mean_se
from jvae.evals.likelihood import LikelihoodResult


class Excess(NamedTuple):
    """NLL_K minus the exact -log p of the same sentences; negative values can only be chance."""

    mean_nats: float
    se_nats: float | None
    suspicious: (
        bool  # more than 4 standard errors below 0: the model leaks its target or counts wrongly
    )


def excess_over_exact(
    result: LikelihoodResult, exact_e: Float[np.ndarray, "n"]
) -> dict[int, Excess]:
    """The excess at each K recorded.

    Args:
      exact_e: -log p in nats of each sentence of the split, by example id, under the distribution
        it was drawn from.
    """
    excess = {}
    for k, bound_e in result.scores.bound_e.items():
        mean, se = mean_se(np.asarray(bound_e, np.float64) - np.asarray(exact_e)[result.id_e])
        excess[k] = Excess(mean, se, se is not None and mean < -4 * se)
    return excess
