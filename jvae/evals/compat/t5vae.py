"""The numbers of the "transformers into VAEs" code: `calc_all`, `calc_ppl`, `calc_batch_mi`.

Source: seongminp/transformers-into-vaes. The errors of the code are kept: see `WARNING`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.evals.compat.shared import (
    CompatRow,
    Facts,
    batched_mi,
    gaussian_mi,
    perplexity,
    variance_of_means,
)

BATCH = 256  # batch size of the released evaluation; its logarithm, 5.55, is the ceiling of the MI
WARNING = (
    "t5vae: PPL is exp of the one-sample -ELBO over tokens without the end, which is predicted all "
    "the same; elbo is KL - Rec, its second sign flipped; MI is taken inside batches"
)


class Corpus(NamedTuple):
    """The outputs of `calc_ppl`, under its names."""

    ppl: float
    nll: float  # -ELBO
    elbo: float  # KL - Rec
    rec: float
    kl: float


def corpus(rec_e: Float[np.ndarray, "e"], kl_e: Float[np.ndarray, "e"], tokens: int) -> Corpus:
    """Corpus-level outputs.

    Args:
      rec_e: -log p(x | z) of one draw.
      tokens: total over all sentences, without the end.
    """
    rec, kl = float(np.mean(rec_e)), float(np.mean(kl_e))
    total_e = np.asarray(rec_e, np.float64) + kl_e
    return Corpus(perplexity(-total_e, tokens), rec + kl, kl - rec, rec, kl)


mutual_information = batched_mi
batch_mutual_information = gaussian_mi


def active_units(mean_ez: Float[np.ndarray, "e z"], ddof: int = 1) -> int:
    """Dimensions whose mean varies by 0.01 or more; `calc_all` divides by N - 1, `calc_au` by N."""
    return int(np.sum(variance_of_means(mean_ez, ddof) >= 0.01))


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours."""
    tokens = int(facts.tokens_e.sum() - facts.tokens_e.size)
    published = corpus(-facts.draws.log_lik_ke[0], facts.kl_e, tokens)
    ours = facts.ours
    table = [
        CompatRow("ppl", published.ppl, "per token, end not counted, 1 draw", ours.get("ppl_t")),
        CompatRow("nll", published.nll, "nats/sentence, -ELBO", ours.get("neg_elbo")),
        CompatRow("elbo", published.elbo, "nats/sentence, KL - Rec", None),
        CompatRow("rec", published.rec, "nats/sentence", ours.get("rec")),
        CompatRow("kl", published.kl, "nats/sentence", ours.get("kl")),
    ]
    units = active_units(facts.mean_ez)
    table.append(CompatRow("au", units, f"of {facts.mean_egz[0].size}", ours.get("au_0.01")))
    if facts.log_var_ez is not None and facts.z_ez is not None:
        mi = mutual_information(facts.mean_ez, facts.log_var_ez, facts.z_ez, BATCH)
        table.append(CompatRow("mi", mi, f"nats, inside batches of {BATCH}", ours.get("mi")))
    return table
