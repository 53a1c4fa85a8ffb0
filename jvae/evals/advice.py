"""Hints about a trained model: problems that its metrics show, and what to try.

Overfitting and unknown tokens have warnings of their own.
"""

from collections.abc import Mapping, Sequence

from jvae.runs.own_text import TOO_FEW

LABEL = "Hint: "  # prefix of each line
POOR = 20.0  # % of exact reconstructions below which the latent does not encode the texts
FALLING = 0.01  # share of the validation -ELBO by which the last check still improved
LOST = 0.01  # share of skipped lines worth a hint


def find(
    values: Mapping[str, object],
    log: Sequence[Mapping[str, object]],
    *,
    texts: int,
    dropped: int,
    pretrained: bool,
    ended_early: bool,
    free_bits: bool,
) -> list[str]:
    """Returns one line per problem; an empty list if there is none.

    Args:
      values: metrics by name. log: lines of metrics.jsonl. texts: size of the train split. dropped:
        number of training lines that were skipped. pretrained: whether training started from
        pretrained weights. ended_early: whether patience ended the training. free_bits: whether
        the KL has values per latent dimension, which free bits need.
    """
    lines = []
    if values.get("collapsed") is True:
        floor = "free bits (objective.free_bits=dim_masked, objective.free_bits_nats=0.5) "
        lines.append(
            "The latent is not used. Try a longer time without KL (objective.beta.ratio_zero=0.4), "
            f"a lower weight (objective.beta.stop=0.5), {floor if free_bits else ''}"
            "or noise.word_dropout=0.3."
        )
    if not ended_early and (share := still_falling(log)) is not None:
        lines.append(
            f"The validation -ELBO still fell by {100 * share:.1f} % up to the last check: "
            "training ended too early. Raise train.steps and run the same command."
        )
    exact = values.get("exact_match_reachable", values.get("exact_match"))
    if isinstance(exact, int | float) and exact < POOR and values.get("collapsed") is False:
        remedy = (
            f"{texts:,} texts are too few to learn a language from: start from pretrained weights "
            "(--config=optimus:smollm2)"
            if texts < TOO_FEW and not pretrained
            else "a lower weight of the KL (objective.beta.stop=0.5), a larger latent "
            "(model.latent) or more steps raise it, at a higher KL"
        )
        lines.append(f"{exact:.1f} % of the texts are reconstructed exactly; {remedy}.")
    if dropped > LOST * (texts + dropped):
        lines.append(
            f"{dropped:,} of {texts + dropped:,} lines were left out; the log of the training says "
            "why. Longer texts need data.max_words and model.*.positions, documents "
            "data.sentences=true."
        )
    return [LABEL + line for line in lines]


def still_falling(log: Sequence[Mapping[str, object]]) -> float | None:
    """Relative improvement of the last check over the best earlier one; None if it is small."""
    bounds = [v for line in log if isinstance(v := line.get("valid/neg_elbo"), int | float)]
    if len(bounds) < 2 or min(bounds[:-1]) <= 0:
        return None
    share = 1 - bounds[-1] / min(bounds[:-1])
    return share if share > FALLING else None
