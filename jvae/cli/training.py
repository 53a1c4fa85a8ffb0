"""A complete training, from checks to evaluation, for --mode=train and `jvae.train`."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jvae import config as configs
from jvae import extras
from jvae.errors import InputTypeError
from jvae.evals import evaluation, run_card
from jvae.evals.card import Report
from jvae.fields import as_flag
from jvae.inference.text_vae import LoadedVAE
from jvae.parallel import processes
from jvae.runs import identity, loading, phases, start, trackers, workdir
from jvae.runs.console import shown_log
from jvae.training import init_params, loop
from jvae.training.loop import Callback
from jvae.training.preemption import Stop, Stopped
from jvae.validation.validate import validate

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The table of the test split, and whether the run was already finished."""

    table: str
    before: bool


def run(
    config: ConfigDict, folder: Path, stop: Stop, callbacks: Sequence[Callback] = ()
) -> Outcome:
    """Trains or resumes a run, then evaluates the best checkpoint on the test split.

    Raises: JvaeError; Stopped, after saving the state, if `stop` was requested.
    """
    begun = bool(workdir.checkpoints(folder))
    validate(config, saved=workdir.saved_config(folder) if begun else None)
    if config.train.wandb:
        extras.require("wandb", f"train.wandb={config.train.wandb}")
    if not begun:  # a run that has started uses its own weights
        init_params.check_backbones(config)
    if table := _finished(config, folder):
        if processes.first():
            workdir.claim(folder, config)
        return Outcome(table, before=True)
    with stop, workdir.Lock(folder) as lock:
        done = loop.train(config, folder, stop, lock, callbacks)
        report = evaluation.evaluate(done.run, done.mesh, done.params, done.step)
        if processes.first():
            trackers.finish(folder, done.step, done.run.config, final_metrics(report))
    for callback in callbacks:
        callback(done.step, final_metrics(report))
    return Outcome(report.table(), before=False)


def final_metrics(report: Report) -> dict[str, float]:
    """The numbers of a report by name, such as `test/nll_100`."""
    numbers = {row.name: row.value for row in report.rows if isinstance(row.value, int | float)}
    return {f"test/{name}": float(value) for name, value in numbers.items()}


def train(
    config: str | ConfigDict,
    workdir: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
) -> LoadedVAE:
    """Trains a model, evaluates it and returns it like `jvae.load`.

        vae = jvae.train("optimus:tiny", overrides={"data.train": "my.txt", "train.steps": 500})

    This is the run of `python -m jvae.main --config=...`, with the same files and messages: the
    same call resumes an interrupted training and returns the model of a finished one. A level set
    by `logging.getLogger("jvae").setLevel` replaces the messages' own.

    Args:
      config: name or file as for `--config=`, or a config.
      workdir: folder of the run; by default runs/<name of the config>.
      overrides: config values by key.
      callbacks: functions of a step and a dictionary of numbers by name. Every process calls them
        for each line of metrics ("train/loss", "valid/loss", and "valid/neg_elbo" if the posterior
        has a density) and at the end ("test/nll_100").
        If one returns True, training ends, and the best checkpoint so far is returned without
        evaluation.
      seed: for the model's samples, as in `jvae.load`; the training seed is `seed` of the config.
    Raises: JvaeError, also for callbacks that are not a list of functions; any exception of a
      callback; Stopped (not an Exception) if an interrupt ended the training, after the state was
      saved.
    """
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):
        raise InputTypeError(f"callbacks={callbacks!r}: expected a list of functions")
    base = configs.load(config) if isinstance(config, str) else config
    folder = Path("runs") / base.name if workdir is None else Path(workdir).expanduser()
    stop = Stop(own_process=False)
    with shown_log():
        settled = start.configure(base, _flags(overrides or {}), folder)
        try:
            outcome = run(settled, folder, stop, callbacks)
            log.info("%s", outcome.table)
        except Stopped as stopped:
            if not stop.from_within:
                raise
            log.info("%s", stopped)
        return loading.load(folder, seed=seed)


def _flags(overrides: Mapping[str, object]) -> list[str]:
    """Values as flags, with all digits of floats."""

    def text(value: object) -> str:
        return repr(value) if isinstance(value, float) else as_flag(value)

    return [f"{key}={text(value)}" for key, value in overrides.items()]


def _finished(config: ConfigDict, folder: Path) -> str | None:
    """The table of a run that has finished training and evaluation; None if work remains."""
    saved = identity.saved(folder)
    if saved is None:
        return None
    workdir.check(folder, config, saved.configs, bool(saved.records))
    if not phases.finished(config, saved.last):
        return None
    # If text files have moved, training and evaluation compare their content.
    return None if workdir.moved(folder, config) else run_card.table(folder, saved.params_step)
