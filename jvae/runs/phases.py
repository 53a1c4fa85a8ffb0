"""Phases of a run: which parameters train, with which objective and optimizer, for which share.

A phase acts like a separate run that starts from the parameters of the previous phase: it has a
fresh optimizer, and its schedules begin at its first step. Config section, ordered by name:

    phases.stage0.share       share of train.steps; the shares of all phases add up to 1
    phases.stage0.patience    end the phase after this many checks without a better validation
                              -ELBO; 0: never. Counting starts once its objective is final
    phases.stage0.optim       keys of `optim` to override
    phases.stage0.objective   keys of `objective` to override; likewise `noise`

Without this section the run has a single phase.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.runs import schedules

SECTIONS = ("objective", "optim", "noise")
KEYS = ("share", "patience", *SECTIONS)


class Phase(NamedTuple):
    """One phase with all values resolved.

    name: "" if the run has a single phase. notes: values that differ from the config.
    final: the number of its steps after which the KL weight is constant and all trainable
    parameters are being trained.
    """

    name: str
    steps: int
    patience: int
    objective: ConfigDict
    optim: ConfigDict
    noise: ConfigDict
    notes: tuple[str, ...] = ()
    final: int = 0

    def bound(self, rec: float, kl: float) -> float:
        """The -ELBO under the final KL weight, which checks compare. It excludes free bits,
        auxiliary terms and length weights, which only apply in training.
        """
        return rec + float(self.objective.beta.stop) * kl


class PhaseProgress(NamedTuple):
    """Where a run is in its phases: the part that a checkpoint stores next to the state."""

    index: int = 0  # index of the phase
    begin: int = 0  # steps of the run before this phase
    best: float | None = None  # lowest validation -ELBO of this phase at its final objective
    stalled: int = 0  # checks since then
    over: bool = False  # whether the phase has ended
    steps: int | None = None  # steps of this phase, if train.steps changed after it began
    best_per_token: float | None = None  # the same in nats per token
    train_per_token: float | None = None  # -ELBO of training at that check

    @property
    def per_token(self) -> tuple[float, float] | None:
        """-ELBO of training and of validation at the best check, in nats per token."""
        if self.train_per_token is None or self.best_per_token is None:
            return None
        return self.train_per_token, self.best_per_token

    def counts(self, phase: Phase, done: int) -> bool:
        """Whether a check at `done` steps of the run is comparable: the objective is final.

        Validation uses the KL weight from the end of the phase, so its -ELBO may rise until
        training uses the same weight.
        """
        return done - self.begin >= phase.final

    def checked(
        self, phase: Phase, done: int, bound: float, per_token: tuple[float, float] | None = None
    ) -> "PhaseProgress":
        """The progress after a check at `done` steps of the run with validation -ELBO `bound`."""
        if not self.counts(phase, done):
            over = done - self.begin >= phase.steps
            return PhaseProgress(self.index, self.begin, over=over, steps=self.steps)
        better = bound < (math.inf if self.best is None else self.best)
        stalled = 0 if better else self.stalled + 1
        over = done - self.begin >= phase.steps or 0 < phase.patience <= stalled
        if not better:
            return self._replace(stalled=stalled, over=over)
        train, valid = per_token or (None, None)
        at = self._replace(best=bound, stalled=0, over=over)
        return at._replace(train_per_token=train, best_per_token=valid)

    def following(self, done: int) -> "PhaseProgress":
        """The progress at the start of the next phase."""
        return PhaseProgress(self.index + 1, done)


def resolve(config: ConfigDict) -> tuple[Phase, ...]:
    """The phases of a config, in order.

    Raises: ConfigError for shares that do not add up to 1, a phase without a step, or a key that
      the base section lacks.
    """
    tree = config.to_dict()
    total, sections = int(tree["train"]["steps"]), tree.get("phases")
    if not sections:
        settled = (ConfigDict(tree[part]) for part in SECTIONS)
        return (_settled(Phase("", total, tree["train"]["patience"], *settled)),)
    phases, before, share = [], 0, 0.0
    for name in sorted(sections):
        section = sections[name]
        for key in section:
            if key not in KEYS:
                raise ConfigError(
                    f"phases.{name}.{key}: unknown key; a phase may set {', '.join(KEYS)}"
                )
        share += float(section.get("share", 0.0))
        steps = round(share * total) - before
        if steps < 1:
            raise ConfigError(
                f"phases.{name}.share leaves it no step of train.steps = {total}; raise one of them"
            )
        before += steps
        settled = (
            ConfigDict(_merged(tree[part], section.get(part, {}), f"phases.{name}.{part}"))
            for part in SECTIONS
        )
        patience = int(section.get("patience", tree["train"]["patience"]))
        phases.append(_settled(Phase(name, steps, patience, *settled)))
    if abs(share - 1.0) > 1e-6:
        raise ConfigError(f"phases: the shares add up to {share:g}; expected 1")
    return tuple(phases)


def _settled(phase: Phase) -> Phase:
    """The phase with its warm-up cut to its length, and the step where its objective is final."""
    warmup = phase.optim.warmup_steps
    if warmup > phase.steps:
        optim = ConfigDict(phase.optim.to_dict() | dict(warmup_steps=phase.steps))
        note = (
            f"optim.warmup_steps={warmup} is longer than {phase.name or 'the run'}; it warms up "
            f"for all of its {phase.steps} steps"
        )
        phase = phase._replace(optim=optim, notes=(note,))
    return _of_length(phase, phase.steps)


def at_place(plan: Sequence[Phase], at: PhaseProgress) -> Phase:
    """The phase a run is in, with its actual length."""
    phase = plan[at.index]
    return phase if at.steps is None else _of_length(phase, at.steps)


def replan(config: ConfigDict, meta: Mapping[str, Any]) -> PhaseProgress:
    """Where a checkpointed run is in the phases of a config, whose train.steps may have changed.

    The current (or just completed) phase then ends at its share of the new steps. Earlier phases
    keep their lengths; later ones get their shares of the new steps.

    Raises: ConfigError if more steps than that are already done.
    """
    at, done = PhaseProgress(**meta["phase"]), int(meta["step"])
    old, new = resolve(configs.stored(meta["config"])), resolve(config)
    before, after = (_end(plan, at.index) for plan in (old, new))
    if before == after:
        return at
    steps = at_place(old, at).steps + after - before
    if at.begin + steps < done:
        where = f"phase {new[at.index].name} ends" if new[at.index].name else "the run ends"
        raise ConfigError(
            f"train.steps is {config.train.steps}, so {where} at step {at.begin + steps}, but "
            f"{done} steps are done; give more, or train a shorter run in another --workdir"
        )
    return at._replace(steps=steps, stalled=0, over=at.begin + steps == done)


def finished(config: ConfigDict, meta: Mapping[str, Any]) -> bool:
    """Whether the checkpoint with that meta completes the training of a config.

    Raises: ConfigError as in `replan`.
    """
    at = replan(config, meta)
    return at.over and at.index + 1 == len(resolve(config))


def _end(plan: Sequence[Phase], index: int) -> int:
    """The step at which a phase ends if patience ends neither it nor an earlier one."""
    return sum(phase.steps for phase in plan[: index + 1])


def _of_length(phase: Phase, steps: int) -> Phase:
    """A phase with another number of steps."""
    rules = enumerate(phase.optim.trainable)
    starts = (
        schedules.step_of(fields[3], steps, f"config.optim.trainable[{number}]")
        for number, fields in rules
        if isinstance(fields, (tuple, list)) and len(fields) == 4
    )
    final = max(starts, default=0)
    if phase.objective.z != "zero":  # with z = "zero" the KL has no weight at all
        final = max(final, schedules.final_from(phase.objective.beta, steps))
    return phase._replace(steps=steps, final=final)


def _merged(base: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise ConfigError(f"{where}.{key}: no such key; known: {', '.join(sorted(base))}")
        nested = isinstance(base[key], dict) and isinstance(value, dict)
        out[key] = _merged(base[key], value, f"{where}.{key}") if nested else value
    return out
