"""What is wrong with a trained model, by its own numbers, and what to try. Overfitting and unknown
tokens have warnings of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LABEL = "Hint: "  # in front of each line
FEW = 5_000  # training texts below which most words are seen too rarely to be learned
POOR = 20.0  # % of exact reconstructions below which the latent does not hold the texts
FALLING = 0.01  # share of the validation -ELBO by which the last check was still better
LOST = 0.01  # share of the lines left out that is worth a word


def find(
    values: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    *,
    texts: int,
    dropped: int,
    pretrained: bool,
    ended_early: bool,
) -> list[str]:
    """A line for each fault, none where there is none.

    Args:
      values: metrics by name. log: lines of metrics.jsonl. texts: of the train split. dropped:
        lines of it that were left out. pretrained: whether training began with weights of others.
      ended_early: whether patience ended the training.
    """
    lines = []
    if values.get("collapsed") is True:
        lines.append(
            "The latent is not used. Try a longer time without KL (objective.beta.ratio_zero=0.4), "
            "a lower weight (objective.beta.stop=0.5), free bits (objective.kl_floor=dim_masked, "
            "objective.floor=0.5) or noise.word_dropout=0.3."
        )
    if not ended_early and (share := still_falling(log)) is not None:
        lines.append(
            f"The validation -ELBO still fell by {100 * share:.1f} % up to the last check: "
            "training ended too early. Raise train.steps and run the same command."
        )
    exact = values.get("exact_match_reachable", values.get("exact_match"))
    if isinstance(exact, int | float) and exact < POOR and values.get("collapsed") is False:
        remedy = (
            f"{texts:,} texts are few to learn a language from: start from pretrained weights "
            "(--config=optimus:smollm2)"
            if texts < FEW and not pretrained
            else "a lower weight of the KL (objective.beta.stop=0.5), a larger latent "
            "(model.latent) or more steps bring it up, at a higher KL"
        )
        lines.append(f"{exact:.1f} % of the texts come back letter by letter; {remedy}.")
    if dropped > LOST * (texts + dropped):
        lines.append(
            f"{dropped:,} of {texts + dropped:,} lines were left out; the log of the training says "
            "why. Longer texts need data.max_words and model.*.positions, documents "
            "data.sentences=true."
        )
    return [LABEL + line for line in lines]


def still_falling(log: Sequence[Mapping[str, Any]]) -> float | None:
    """By which share the last check beat the best one before; None where it did not by much."""
    bounds = [v for line in log if isinstance(v := line.get("valid/neg_elbo"), int | float)]
    if len(bounds) < 2 or min(bounds[:-1]) <= 0:
        return None
    share = 1 - bounds[-1] / min(bounds[:-1])
    return share if share > FALLING else None
