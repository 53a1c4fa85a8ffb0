"""The numbers of the DELLA code: `calc_iwnll` and `calc_au` of `train_utils.py`.

Source: OpenVLG/DELLA. The errors of the code are kept: see `WARNING`. Because it averages over
layers instead of summing, the estimate is not a bound on the likelihood.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.evals.compat.shared import CompatRow, Facts, log_mean_weight, perplexity

SAMPLES = 30
THRESHOLD = 0.2  # variance threshold of an active unit
WARNING = (
    "della: no bound on the likelihood: KL, log prior and log posterior are means over layers in "
    "place of sums; start and end both counted; active units at 0.2, averaged over layers"
)


class Corpus(NamedTuple):
    """The outputs of `calc_iwnll`, under its names."""

    ppl: float
    elbo: float  # KL + Rec
    nll: float  # Rec
    kl: float


def log_likelihood(
    log_lik_ke: Float[np.ndarray, "k e"],
    log_prior_ke: Float[np.ndarray, "k e"],
    log_q_ke: Float[np.ndarray, "k e"],
    groups: int,
) -> Float[np.ndarray, "e"]:
    """Log of the mean weight with both latent densities divided by the number of layers."""
    densities = (np.asarray(a, np.float64) / groups for a in (log_prior_ke, log_q_ke))
    return log_mean_weight(log_lik_ke, *densities)


def divergence(kl_eg: Float[np.ndarray, "e g"], threshold: float = 0.0) -> Float[np.ndarray, "e"]:
    """Mean over layers of each layer's KL, at least `threshold`."""
    return np.maximum(np.asarray(kl_eg, np.float64), threshold).mean(axis=1)


def corpus(
    log_p_e: Float[np.ndarray, "e"],
    rec_e: Float[np.ndarray, "e"],
    kl_e: Float[np.ndarray, "e"],
    tokens: int,
) -> Corpus:
    """Corpus-level outputs.

    Args:
      log_p_e, kl_e: see `log_likelihood` and `divergence`.
      rec_e: mean of -log p(x | z) over the draws.
      tokens: of all sentences, start and end counted.
    """
    rec, kl = float(np.mean(rec_e)), float(np.mean(kl_e))
    return Corpus(perplexity(log_p_e, tokens), rec + kl, rec, kl)


def active_share(
    centre_egz: Float[np.ndarray, "e g z"], spread_egz: Float[np.ndarray, "e g z"] | None = None
) -> float:
    """Share of all dimensions that vary by 0.2 or more.

    Args:
      centre_egz, spread_egz: posterior means from the two passes of the released code, which draws
        again in each; the spread of the second is about the mean of the first. A single pass is
        used for both.
    """
    spread_egz = centre_egz if spread_egz is None else spread_egz
    apart_egz = np.asarray(spread_egz, np.float64) - np.mean(centre_egz, axis=0, dtype=np.float64)
    variance_gz = np.sum(apart_egz**2, axis=0) / (len(apart_egz) - 1)
    return float(np.mean(variance_gz >= THRESHOLD))


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours."""
    draws = type(facts.draws)(*(a[:SAMPLES] for a in facts.draws))
    log_p_e = log_likelihood(*draws, groups=facts.groups)
    tokens = int(facts.tokens_e.sum() + facts.tokens_e.size)
    kl_e = facts.kl_e / facts.groups if facts.kl_eg is None else divergence(facts.kl_eg)
    published = corpus(log_p_e, -draws.log_lik_ke.mean(axis=0), kl_e, tokens)
    width, ours = facts.mean_egz.shape[2], facts.ours
    k = len(draws.log_lik_ke)
    return [
        CompatRow("ppl", published.ppl, f"per token, start counted, K = {k}", ours.get("ppl_t")),
        CompatRow("elbo", published.elbo, "nats/sentence", ours.get("neg_elbo")),
        CompatRow("nll", published.nll, "nats/sentence, Rec", ours.get("rec")),
        CompatRow("kl", published.kl, "nats/sentence, layer mean", ours.get("kl")),
        CompatRow(
            "au", width * active_share(facts.mean_egz), f"of {width}, at 0.2", ours.get("au_0.2")
        ),
    ]
