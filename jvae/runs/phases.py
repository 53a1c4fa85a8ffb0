"""Phases of one run: what trains, under which objective and optimizer, for which share of it.

A phase is what would otherwise be a run of its own, started from the parameters of the one before:
it has a fresh optimizer, and its schedules begin at its first step. Config section, in the order of
the names:

    phases.stage0.share       of train.steps; the shares of all phases add up to 1
    phases.stage0.patience    checks without a better validation loss that end it early; 0: never
    phases.stage0.optim       keys of `optim` that differ
    phases.stage0.objective   keys of `objective` that differ; and `noise` likewise

Without phases the run is one.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jvae.errors import ConfigError

SECTIONS = ("objective", "optim", "noise")
KEYS = ("share", "patience", *SECTIONS)


class Phase(NamedTuple):
    """One phase with all its values settled.

    name: "" where the run is one phase. notes: what was settled otherwise than the config says.
    """

    name: str
    steps: int
    patience: int
    objective: ConfigDict
    optim: ConfigDict
    noise: ConfigDict
    notes: tuple[str, ...] = ()


class PhaseProgress(NamedTuple):
    """Where a run stands in its phases; what of it a checkpoint keeps beside the state."""

    index: int = 0  # phase
    begin: int = 0  # steps of the run before this phase
    best: float | None = None  # lowest validation loss of this phase
    stalled: int = 0  # checks since then
    over: bool = False  # whether the phase has ended

    def checked(self, phase: Phase, done: int, loss: float) -> "PhaseProgress":
        """After a check at `done` steps of the run."""
        better = self.best is None or loss < self.best
        stalled = 0 if better else self.stalled + 1
        over = done - self.begin >= phase.steps or 0 < phase.patience <= stalled
        return self._replace(best=loss if better else self.best, stalled=stalled, over=over)

    def following(self, done: int) -> "PhaseProgress":
        """At the start of the next phase."""
        return PhaseProgress(self.index + 1, done)


def resolve(config: ConfigDict) -> tuple[Phase, ...]:
    """The phases of a config, in order.

    Raises: ConfigError for shares that do not add up to 1, a phase without a step, or a key that
      the base section lacks.
    """
    tree = config.to_dict()
    total, sections = int(tree["train"]["steps"]), tree["phases"]
    if not sections:
        settled = (ConfigDict(tree[part]) for part in SECTIONS)
        return (_fitted(Phase("", total, tree["train"]["patience"], *settled)),)
    phases, before, share = [], 0, 0.0
    for name in sorted(sections):
        section = sections[name]
        for key in section:
            if key not in KEYS:
                raise ConfigError(f"phases.{name}.{key}: a phase has {', '.join(KEYS)}")
        share += float(section.get("share", 0.0))
        steps = round(share * total) - before
        if steps < 1:
            raise ConfigError(
                f"phases.{name}.share leaves it no step of train.steps = {total}; raise either"
            )
        before += steps
        settled = (
            ConfigDict(_merged(tree[part], section.get(part, {}), f"phases.{name}.{part}"))
            for part in SECTIONS
        )
        patience = int(section.get("patience", tree["train"]["patience"]))
        phases.append(_fitted(Phase(name, steps, patience, *settled)))
    if abs(share - 1.0) > 1e-6:
        raise ConfigError(f"phases: the shares add up to {share:g}; expected 1")
    return tuple(phases)


def _fitted(phase: Phase) -> Phase:
    """The phase with a warm-up that is no longer than it."""
    warmup = phase.optim.warmup_steps
    if warmup <= phase.steps:
        return phase
    optim = ConfigDict(phase.optim.to_dict() | dict(warmup_steps=phase.steps))
    note = (
        f"optim.warmup_steps={warmup} is longer than {phase.name or 'the run'}; it warms up for "
        f"all of its {phase.steps} steps"
    )
    return phase._replace(optim=optim, notes=(note,))


def _merged(base: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise ConfigError(f"{where}.{key}: no such key; known: {', '.join(sorted(base))}")
        nested = isinstance(base[key], dict) and isinstance(value, dict)
        out[key] = _merged(base[key], value, f"{where}.{key}") if nested else value
    return out
