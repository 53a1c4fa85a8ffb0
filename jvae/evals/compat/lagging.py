"""The numbers of jxhe/vae-lagging-encoder, by definition: close to ours except for its MI.

Source: He et al. 2019, arXiv 1901.05534. K = 500, words and end counted.
"""

import numpy as np
from jaxtyping import Float

from jvae.evals.compat.shared import CompatRow, Facts, batched_mi, perplexity, variance_of_means

SAMPLES = 500
BATCH = 32
WARNING = f"lagging: MI is taken inside batches of {BATCH}, so it is at most ln {BATCH} = 3.47"


def ppl(log_p_e: Float[np.ndarray, "e"], words: int) -> float:
    """Perplexity per word.

    Args:
      words: total over all sentences, with ends counted.
    """
    return perplexity(log_p_e, words)


def mutual_information(
    mean_ez: Float[np.ndarray, "e z"],
    log_var_ez: Float[np.ndarray, "e z"],
    z_ez: Float[np.ndarray, "e z"],
) -> float:
    """Mean over batches of 32 in file order."""
    return batched_mi(mean_ez, log_var_ez, z_ez, BATCH)


def active_units(mean_ez: Float[np.ndarray, "e z"]) -> int:
    """Dimensions whose mean varies by 0.01 or more."""
    return int(np.sum(variance_of_means(mean_ez) >= 0.01))


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours."""
    k = facts.samples(SAMPLES)
    words = int(facts.words_e.sum() + facts.words_e.size)
    log_p_e, ours = -facts.nll_at[k], facts.ours
    table = [
        CompatRow("ppl", ppl(log_p_e, words), f"per word, K = {k}", ours.get("ppl_w")),
        CompatRow("nll", -float(np.mean(log_p_e)), f"nats/sentence, K = {k}", None),
        CompatRow("kl", float(np.mean(facts.kl_e)), "nats/sentence", ours.get("kl")),
    ]
    units = active_units(facts.mean_ez)
    table.append(CompatRow("au", units, f"of {facts.mean_egz[0].size}", ours.get("au_0.01")))
    if facts.log_var_ez is not None and facts.z_ez is not None:
        mi = mutual_information(facts.mean_ez, facts.log_var_ez, facts.z_ez)
        table.append(CompatRow("mi", mi, f"nats, inside batches of {BATCH}", ours.get("mi")))
    return table
