"""The numbers of the AdaVAE code's weighted evaluation, `compute_loss` of `src/adaVAE.py`.

Source: ImKeTT/adavae. The errors of the code are kept: see `WARNING`. Because prior and posterior
are exchanged, the estimate is not a bound on the likelihood: it decreases as the KL grows.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.evals.compat.shared import (
    CompatRow,
    Facts,
    gaussian_mi,
    log_mean_weight,
    perplexity,
    variance_of_means,
)

SAMPLES = 100
WARNING = (
    "adavae: no bound on the likelihood: prior and posterior are exchanged in the weights and the "
    "log-variance serves as standard deviation; the end is not scored, yet it and one more token "
    "are counted; the released script also cuts texts to 32 pieces, which is not done here"
)


class Corpus(NamedTuple):
    """Corpus-level outputs, under the names used by the code."""

    ppl: float
    elbo: float  # Rec + KL
    nll: float  # Rec
    kl: float


def released_draw(
    mean: Float[np.ndarray, "... z"],
    log_var: Float[np.ndarray, "... z"],
    noise: Float[np.ndarray, "... z"],
) -> Float[np.ndarray, "... z"]:
    """The latent as the released code draws it: with the log-variance in place of the deviation."""
    return mean + noise * log_var


def log_likelihood(
    log_lik_ke: Float[np.ndarray, "k e"],
    log_prior_ke: Float[np.ndarray, "k e"],
    log_q_ke: Float[np.ndarray, "k e"],
) -> Float[np.ndarray, "e"]:
    """Log of the mean weight with prior and posterior exchanged.

    Args:
      log_lik_ke: without the end-of-sentence token, at latents from `released_draw`.
    """
    return log_mean_weight(log_lik_ke, log_q_ke, log_prior_ke)


textbook_log_likelihood = log_mean_weight
mutual_information = gaussian_mi


def corpus(
    log_p_e: Float[np.ndarray, "e"],
    rec_e: Float[np.ndarray, "e"],
    kl_e: Float[np.ndarray, "e"],
    tokens: int,
) -> Corpus:
    """Corpus-level outputs.

    Args:
      log_p_e: see `log_likelihood`.
      rec_e: mean of -log p(x | z) over the draws, with the end not scored.
      tokens: of all sentences, counting the end and one more per sentence.
    """
    rec, kl = float(np.mean(rec_e)), float(np.mean(kl_e))
    return Corpus(perplexity(log_p_e, tokens), rec + kl, rec, kl)


def active_units(mean_ez: Float[np.ndarray, "e z"]) -> int:
    """Dimensions whose mean varies by 0.01 or more."""
    return int(np.sum(variance_of_means(mean_ez) >= 0.01))


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours; none for other kinds of posteriors."""
    if facts.released is None or facts.log_var_ez is None or facts.z_ez is None:
        return [CompatRow("ppl", None, "needs a posterior that is one Gaussian")]
    draws = type(facts.released)(*(a[:SAMPLES] for a in facts.released))
    tokens = int(facts.tokens_e.sum() + facts.tokens_e.size)
    log_p_e, rec_e = log_likelihood(*draws), -draws.log_lik_ke.mean(axis=0)
    published, ours = corpus(log_p_e, rec_e, facts.kl_e, tokens), facts.ours
    k = len(draws.log_lik_ke)
    mean_ez = facts.mean_ez
    mi = mutual_information(mean_ez, facts.log_var_ez, facts.z_ez)
    return [
        CompatRow("ppl", published.ppl, f"per token, one too many, K = {k}", ours.get("ppl_t")),
        CompatRow("elbo", published.elbo, "nats/sentence", ours.get("neg_elbo")),
        CompatRow("nll", published.nll, "nats/sentence, Rec without end", ours.get("rec")),
        CompatRow("kl", published.kl, "nats/sentence", ours.get("kl")),
        CompatRow("au", active_units(mean_ez), f"of {mean_ez.shape[1]}", ours.get("au_0.01")),
        CompatRow("mi", mi, "nats", ours.get("mi")),
    ]
