"""Code shared by several published estimators: pure functions over NumPy arrays, in float64.

Axis letters: K draws, E sentences, G latent groups, Z latent width. Log-densities are sums over the
dimensions and groups of a sentence's whole latent, in nats.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.evals.likelihood import LikelihoodResult
from jvae.runs.console import Value

LOG_2PI = float(np.log(2 * np.pi))


class Draws(NamedTuple):
    """K draws of each sentence's latent."""

    log_lik_ke: Float[np.ndarray, "k e"]  # log p(x | z_k)
    log_prior_ke: Float[np.ndarray, "k e"]
    log_q_ke: Float[np.ndarray, "k e"]


class CompatRow(NamedTuple):
    """A published metric and the jvae metric it corresponds to (None if there is none)."""

    name: str
    value: float | None
    unit: str
    ours: Value = None


def flat(value_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e z"]:
    """Each latent as one vector over all its groups."""
    return value_egz.reshape(len(value_egz), -1)


class Facts(NamedTuple):
    """Inputs of the published estimators, over the sentences of one likelihood result.

    The posterior arrays cover the sentences of the latent-use metrics; they are None if the
    posteriors are not single Gaussians.
    """

    nll_at: dict[int, Float[np.ndarray, "e"]]  # the importance-weighted bound by K
    rec_e: Float[np.ndarray, "e"]
    kl_eg: Float[np.ndarray, "e g"] | None  # KL at one draw, per latent group
    kl_e: Float[np.ndarray, "e"]
    tokens_e: Int[np.ndarray, "e"]  # predicted tokens: the end counted, the start not
    words_e: Int[np.ndarray, "e"]  # whitespace words, no end
    draws: Draws
    released: Draws | None  # drawn and scored as in `adavae`
    groups: int
    mean_egz: Float[np.ndarray, "e g z"]
    log_var_ez: Float[np.ndarray, "e z"] | None
    z_ez: Float[np.ndarray, "e z"] | None
    ours: dict[str, Value]  # values of the report by name
    short_run: LikelihoodResult | None = None  # change-of-variables estimate, over fewer sentences
    short_run_words: int = 0  # words of the sentences of `short_run`

    @property
    def mean_ez(self) -> Float[np.ndarray, "e z"]:
        """Posterior means, all groups in one vector."""
        return flat(self.mean_egz)

    def samples(self, limit: int) -> int:
        """The largest recorded K, at most `limit`."""
        return max(k for k in self.nll_at if k <= limit)


def log_mean_weight(
    log_lik_ke: Float[np.ndarray, "k e"],
    log_prior_ke: Float[np.ndarray, "k e"],
    log_q_ke: Float[np.ndarray, "k e"],
) -> Float[np.ndarray, "e"]:
    """The textbook bound on log p(x): log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x)."""
    log_w_ke = np.asarray(log_lik_ke, np.float64) + log_prior_ke - log_q_ke
    return np.logaddexp.reduce(log_w_ke, axis=0) - np.log(len(log_w_ke))


def gaussian_mi(
    mean_ez: Float[np.ndarray, "e z"],
    log_var_ez: Float[np.ndarray, "e z"],
    z_ez: Float[np.ndarray, "e z"],
    block: int = 256,
) -> float:
    """Mutual information with the mixture of these posteriors as the aggregate, one draw each.

    It is at most about the logarithm of the number of posteriors.
    """
    mean_ez, log_var_ez, z_ez = (np.asarray(a, np.float64) for a in (mean_ez, log_var_ez, z_ez))
    count, width = mean_ez.shape
    negative_entropy = np.mean(-0.5 * width * LOG_2PI - 0.5 * np.sum(1 + log_var_ez, axis=1))
    log_norm_e = -0.5 * (width * LOG_2PI + log_var_ez.sum(axis=1))
    total = 0.0
    for first in range(0, count, block):
        apart = z_ez[first : first + block, None] - mean_ez[None]
        log_q = log_norm_e - 0.5 * np.sum(apart**2 * np.exp(-log_var_ez), axis=2)
        total += np.sum(np.logaddexp.reduce(log_q, axis=1) - np.log(count))
    return float(negative_entropy - total / count)


def batched_mi(
    mean_ez: Float[np.ndarray, "e z"],
    log_var_ez: Float[np.ndarray, "e z"],
    z_ez: Float[np.ndarray, "e z"],
    batch: int,
) -> float:
    """`gaussian_mi` within batches in file order, weighted by batch size: at most ln `batch`."""
    total = 0.0
    for first in range(0, len(mean_ez), batch):
        part = slice(first, first + batch)
        size = len(mean_ez[part])
        total += size * gaussian_mi(mean_ez[part], log_var_ez[part], z_ez[part])
    return total / len(mean_ez)


def variance_of_means(mean: Float[np.ndarray, "e ..."], ddof: int = 1) -> Float[np.ndarray, "..."]:
    """Variance over sentences of each posterior mean."""
    return np.var(np.asarray(mean, np.float64), axis=0, ddof=ddof)


def perplexity(log_p_e: Float[np.ndarray, "e"], count: int) -> float:
    """exp of the negative sum over `count`."""
    with np.errstate(over="ignore"):
        return float(np.exp(-np.sum(log_p_e, dtype=np.float64) / count))
