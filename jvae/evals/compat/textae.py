"""The numbers of shentianxiao/text-autoencoders, by definition: K = 100, words and end counted."""

import numpy as np
from jaxtyping import Float

from jvae.evals.compat.shared import CompatRow, Facts, perplexity

SAMPLES = 100
WARNING = f"textae: K = {SAMPLES}, where jvae's preset `full` has 500; a looser bound by a little"


def ppl(log_p_e: Float[np.ndarray, "e"], words: int) -> float:
    """Perplexity per word.

    Args:
      words: total over all sentences, with ends counted.
    """
    return perplexity(log_p_e, words)


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics of a model, next to ours."""
    k = facts.samples(SAMPLES)
    words = int(facts.words_e.sum() + facts.words_e.size)
    log_p_e, ours = -facts.nll_at[k], facts.ours
    return [
        CompatRow("ppl", ppl(log_p_e, words), f"per word, K = {k}", ours.get("ppl_w")),
        CompatRow("nll", -float(np.mean(log_p_e)), f"nats/sentence, K = {k}", None),
    ]
