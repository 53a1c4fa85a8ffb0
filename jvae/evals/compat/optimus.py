"""The numbers of the Optimus code: `calc_iwnll`, `calc_mi`, `calc_au` of `big_ae/utils.py`.

Source: ChunyuanLI/Optimus. The errors of the code are kept: see `WARNING`.
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
    "optimus: PPL divides by tokens with start and end both counted, though the start is never "
    "predicted; what it calls nll is Rec"
)


class Corpus(NamedTuple):
    """The outputs of `calc_iwnll`, under its names."""

    ppl: float
    elbo: float  # the negative bound
    nll: float  # Rec
    kl: float


log_likelihood = log_mean_weight
mutual_information = gaussian_mi


def corpus(
    log_p_e: Float[np.ndarray, "e"],
    rec_e: Float[np.ndarray, "e"],
    kl_e: Float[np.ndarray, "e"],
    tokens: int,
) -> Corpus:
    """Corpus-level outputs.

    Args:
      log_p_e: importance-weighted estimates, see `log_likelihood`.
      rec_e: mean of -log p(x | z) over the draws.
      tokens: total over all sentences, with start and end counted.
    """
    rec, kl = float(np.mean(rec_e)), float(np.mean(kl_e))
    return Corpus(perplexity(log_p_e, tokens), rec + kl, rec, kl)


def active_units(mean_ez: Float[np.ndarray, "e z"], threshold: float = 0.01) -> int:
    """Dimensions whose mean varies by `threshold` or more."""
    return int(np.sum(variance_of_means(mean_ez) >= threshold))


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours."""
    k = facts.samples(SAMPLES)
    tokens = int(facts.tokens_e.sum() + facts.tokens_e.size)
    published = corpus(-facts.nll_at[k], facts.rec_e, facts.kl_e, tokens)
    ours = facts.ours
    table = [
        CompatRow("ppl", published.ppl, f"per token, start counted, K = {k}", ours.get("ppl_t")),
        CompatRow("elbo", published.elbo, "nats/sentence", ours.get("neg_elbo")),
        CompatRow("nll", published.nll, "nats/sentence, Rec", ours.get("rec")),
        CompatRow("kl", published.kl, "nats/sentence", ours.get("kl")),
    ]
    units = active_units(facts.mean_ez)
    table.append(CompatRow("au", units, f"of {facts.mean_egz[0].size}", ours.get("au_0.01")))
    if facts.log_var_ez is not None and facts.z_ez is not None:
        mi = mutual_information(facts.mean_ez, facts.log_var_ez, facts.z_ez)
        table.append(CompatRow("mi", mi, "nats", ours.get("mi")))
    return table
