"""Detects overfitting during training: the training log and the notes of the table use one rule.

Each check compares the training text since the last log line with the validation split, in nats per
scored token, so that texts of different lengths are comparable. Dropout and noise make the training
text harder: they can hide part of the difference but never add to it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

LEAST = 50  # training sentences below which a difference is mostly chance
CHECKS = 2  # checks after the lowest bound before a rise counts
RISE = 0.05  # nats per token, rise of the validation bound
GAP_KEY, RISE_KEY = "valid/overfit_gap", "valid/overfit_rise"  # columns of metrics.jsonl
REMEDY = (
    "More data, dropout (model.decoder.dropout, model.encoder.dropout), stopping early "
    "(train.patience), a smaller model or pretrained weights (init.encoder, init.decoder; the "
    "presets named base) help"
)


class Overfit(NamedTuple):
    """The excesses that raised the alarm, in nats per token; None for those that did not."""

    gap: float | None  # Rec of validation minus Rec of training
    rise: float | None  # rise of the validation bound while the training bound fell

    def __str__(self) -> str:
        parts = []
        if self.gap is not None:
            parts.append(
                f"a token of validation costs {self.gap:.2f} nats more to reconstruct than one of "
                "training"
            )
        if self.rise is not None:
            parts.append(
                f"the validation -ELBO is {self.rise:.2f} nats per token above its lowest while "
                "that of training fell"
            )
        return ", and ".join(parts)

    def row(self) -> dict[str, float]:
        """As columns of metrics.jsonl."""
        values = {GAP_KEY: self.gap, RISE_KEY: self.rise}
        return {key: value for key, value in values.items() if value is not None}


def find(
    rec: tuple[float, float],
    bound: tuple[float, float],
    best: tuple[float, float] | None,
    *,
    stalled: int,
    sentences: float,
    limit: float,
) -> Overfit | None:
    """The alarm of a check; None if there is none.

    Args:
      rec: reconstruction loss of training and validation, nats per token.
      bound: -ELBO of both under the final objective, nats per token.
      best: `bound` at the check with the lowest validation bound; None before the objective is
        final.
      stalled: number of checks since then.
      sentences: number of training sentences that `rec` and `bound` are means over.
      limit: largest difference in `rec` that is accepted.
    """
    if sentences < LEAST:
        return None
    gap = rec[1] - rec[0]
    rise = bound[1] - best[1] if best and stalled >= CHECKS and bound[0] < best[0] else 0.0
    alarm = Overfit(gap if gap > limit else None, rise if rise > RISE else None)
    return alarm if alarm.row() else None


def note(lines: Iterable[Mapping[str, Any]], step: int) -> str:
    """The overfitting note for the table of a step's parameters; empty if no check raised an alarm.

    Args:
      lines: lines of metrics.jsonl.
    """
    raised = [
        (line["step"], Overfit(line.get(GAP_KEY), line.get(RISE_KEY)))
        for line in lines
        if GAP_KEY in line or RISE_KEY in line
    ]
    if not raised:
        return ""
    alarms = [alarm for at, alarm in raised if at == step]
    if alarms:
        return f"Overfitting: at step {step}, the one that is measured, {alarms[0]}. {REMEDY}."
    first, alarm = raised[0]
    return f"Overfitting from step {first} on ({alarm}); measured is step {step}. {REMEDY}."
