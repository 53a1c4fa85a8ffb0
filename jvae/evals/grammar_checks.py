"""Checks that are only possible on the embedded corpus: exact -log p and grammaticality."""

import numpy as np

from jvae.data import grammar
from jvae.evals.card import Report
from jvae.evals.exact import excess_over_exact
from jvae.evals.likelihood import LikelihoodResult
from jvae.runs import build


def exactness(
    run: build.Run,
    report: Report,
    likelihood: LikelihoodResult,
    samples: dict[str, list[str]],
    split: str,
) -> None:
    """Adds the exact -log p and the share of grammatical sentences of the embedded corpus."""
    exact_e = run.exact[split]
    words = run.data[split].words_e[likelihood.id_e].sum() + len(likelihood.id_e)
    exact = exact_e[likelihood.id_e]
    nats = "nats/sentence"
    report.add("exact", float(exact.mean()), nats, note="-log p of the same sentences")
    floor = float(np.exp(exact.sum() / words))
    report.add("ppl_w_floor", floor, "per word")
    at = excess_over_exact(likelihood, exact_e)
    excess = at[likelihood.k]
    report.add("excess", excess.mean_nats, nats, se=excess.se_nats, note="NLL_K - exact, paired")
    report.details["excess_nats_at"] = at
    below = [k for k, result in at.items() if result.suspicious]
    if below:
        report.notes.append(
            f"NLL_K lies below the exact value at K = {below}: the model sees its own target."
        )
    inner = [
        point for block in samples.get("interpolations", ()) for point in block.split("\n")[1:-2]
    ]
    for name, sentences in (
        ("prior", samples["prior"]),
        ("prior_greedy", samples["prior_greedy"]),
        ("interpolants", inner),
    ):
        if not sentences:
            continue
        accepted = [s for s in sentences if grammar.parse(s) is not None]
        report.add(f"{name}_grammatical", 100.0 * len(accepted) / len(sentences), "%")
        if accepted:
            share = 100.0 * len(set(accepted)) / len(accepted)
            report.add(f"{name}_distinct", share, "% of the accepted")
