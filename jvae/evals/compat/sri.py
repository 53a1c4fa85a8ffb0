"""The numbers of the SRI code: likelihood by change of variables along the short run.

Source: Pang et al. 2021, `train_sri.py`. The mismatch in that code is not kept: it takes end points
and Jacobians from two runs with different noise, which can read below the true value. The rest is
kept and can be arbitrarily pessimistic, see `jvae.evals.change_of_variables`.
"""

import numpy as np

from jvae.evals.change_of_variables import DRAWS
from jvae.evals.compat.shared import CompatRow, Facts, perplexity

SENTENCES = 64  # default subset of the likelihood's sentences: a draw costs K * latent width passes
WARNING = (
    f"sri: {DRAWS} short runs weighted by change of variables, {SENTENCES} sentences at most; too "
    "pessimistic where runs are narrower than the posterior: read its effective sample size"
)


def rows(facts: Facts) -> list[CompatRow]:
    """The published metrics, next to ours (over all sentences); none without a short run."""
    run = facts.short_run
    if run is None:
        return [CompatRow("nll", None, "has an encoder, no short run")]
    scores, ours = run.scores, facts.ours
    nats, n = "nats/sentence", len(run.id_e)
    ppl = perplexity(-np.asarray(scores.nll_e), facts.short_run_words + n)
    nll = float(np.mean(facts.nll_at[max(facts.nll_at)]))
    return [
        CompatRow("ppl", ppl, f"per word, M = {run.k}", ours.get("ppl_w")),
        CompatRow("nll", float(scores.nll_e.mean()), f"{nats}, {n} sentences", nll),
        CompatRow("kl", float(scores.kl_e.mean()), nats, ours.get("kl")),
        CompatRow("rec", float(scores.rec_e.mean()), nats, ours.get("rec")),
        CompatRow("ess", float(scores.ess_e.mean()), f"of {run.k} draws", ours.get("ess")),
    ]
