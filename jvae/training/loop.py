"""The training loop, from top to bottom."""

import functools
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Params
from jvae.data.dataset import Position, batches
from jvae.data.prefetch import Prefetch
from jvae.errors import CheckpointError, ConfigError, TrainingError
from jvae.evals import overfitting
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.runs import build, identity, metrics, phases, workdir
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.console import Value
from jvae.runs.loading import load_params
from jvae.runs.phases import PhaseProgress
from jvae.training import checks, goodput, init_params, optim, program, waiting
from jvae.training.goodput import Goodput
from jvae.training.preemption import Stop, Stopped
from jvae.training.step import TrainState

log = logging.getLogger(__name__)


# Called with a step and numbers by name; returning True requests a stop.
Callback = Callable[[int, dict[str, Any]], object]


class Trained(NamedTuple):
    """In-memory results of a finished training: the run, its mesh, the best parameters."""

    run: build.Run
    mesh: Mesh
    params: Params
    step: int  # the step these parameters come from


def train(
    config: ConfigDict,
    folder: Path,
    stop: Stop | None = None,
    lock: workdir.Lock | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Trains the run of a config, resuming from its newest checkpoint if there is one.

    The folder is bound to this run by its first checkpoint; until then it can be reused.

    Args:
      stop: signals when to save and stop early.
      lock: the folder's lock; acquired here once it is known that the run can start.
      callbacks: called by every process with each line of metrics.
    Raises: JvaeError for any error in the config, data, folder or run; Stopped.
    """
    stop, spent = stop or Stop(), Goodput()
    # Checks of the config alone come first, so that errors show at once.
    begin, plan, at = time.monotonic(), phases.resolve(config), PhaseProgress()
    steps, saved = workdir.checkpoints(folder), identity.saved(folder)
    if saved:
        workdir.check(folder, config, saved.configs, bool(saved.records))
        at = phases.replan(config, saved.last)
    mesh = meshes.make_mesh(config.mesh)
    shards = meshes.row_shards(mesh) * config.train.accumulate
    if config.data.batch_rows % shards:
        raise ConfigError(
            f"data.batch_rows is {config.data.batch_rows}; mesh and train.accumulate cut rows into "
            f"{shards} parts, so use a multiple of that"
        )

    run = build.open_run(config, folder, saved)
    readers = run.encoder.fingerprint + run.decoder.fingerprint
    processes.agree("config or data", configs.to_json(run.config) + readers)
    for phase in plan:
        for note in phase.notes:
            log.info(note)
    job = _Training(run, mesh, plan, at, stop, spent, callbacks)  # raises if anything does not fit
    if processes.first() and lock:
        lock.take()
        if workdir.checkpoints(folder) != steps:
            raise CheckpointError(
                f"{folder}: another process trained here until now; run the same command again"
            )
    processes.wait("locked")
    for line in run.log:
        log.info(line)

    with job.running(resumed=bool(saved)):
        program.log_phase(job.current, job.state.params)
        log.info("mesh %s, ready in %.1f s", dict(mesh.shape), time.monotonic() - begin)
        while job.enter_phase():
            job.update()
            lap = job.log_lap() if job.due or job.done % run.config.train.log_every == 0 else None
            best = job.check(lap) if job.due and lap else None
            signal = stop.asked(job.done)
            if job.due or signal:
                job.save(best)
            if signal:
                job.finish()
                raise Stopped(
                    f"{signal}: saved step {job.done} of {run.config.train.steps} and stopped; run "
                    "the same command to resume"
                )
        job.finish()
    return Trained(run, mesh, *load_params(run.model, mesh, folder))


class _Lap(NamedTuple):
    """What training measured since the last log line."""

    values: dict[str, float]
    sentences: float


class _Training:
    """A run in training: its state, its place in the data and the phases, and what it writes."""

    def __init__(
        self,
        run: build.Run,
        mesh: Mesh,
        plan: Sequence[phases.Phase],
        at: PhaseProgress,
        stop: Stop,
        spent: Goodput,
        callbacks: Sequence[Callback],
    ):
        self.run, self.mesh, self.plan, self.at, self.cfg = run, mesh, plan, at, run.config
        self.stop, self.spent, self.callbacks = stop, spent, callbacks
        self.program_at = functools.cache(self._program_at)
        self.current = self.program_at(at)
        self.record, self.key = run.record(), build.seeds(self.cfg.seed)
        self.done = 0
        self.position = (0, 0)  # in the data: pass, batch
        self.meter: metrics.Sums | None = None  # sums over updates since the last log line
        self.compiled = False  # whether the phase's training step is
        self.checked: program.Program | None = None  # whose validation step is compiled
        self.warned = False  # of overfitting, at the last check
        self.state: TrainState
        self.opened: ExitStack  # what is closed at the end of the run
        self.stream: Prefetch[tuple[Batch, Position]]
        self.batch: Batch  # the latest one, on the host

    def _program_at(self, at: PhaseProgress) -> program.Program:
        return program.compile_phase(self.run, phases.at_place(self.plan, at), self.mesh, at.begin)

    @functools.cached_property
    def ckpts(self) -> Checkpoints:
        """The folder's checkpoints; first used once the folder is locked."""
        frozen = {f"params/{path}" for path in self.current.frozen}
        return Checkpoints(self.run.workdir, keep_last=self.cfg.train.keep, frozen=frozen)

    # --- state: own checkpoint, weights or scratch ------------------------------------------------

    def start(self) -> None:
        """Begins from initial parameters, or from the weights that the config names."""
        run, current = self.run, self.current
        self.stream = self._stream()
        shapes, where = current.abstract.params, current.where.params
        params = init_params.initial_params(run, where, self.key["init"], shapes)
        self.state = current.start(params)
        if self.cfg.init.optimizer:
            moments = init_params.initial_optimizer(run, self.state.opt_state)
            self.state = self.state._replace(opt_state=moments)

    def restore(self) -> None:
        """Continues from the newest checkpoint."""
        self._claim()
        cfg = self.cfg

        def shapes(meta: dict[str, Any]) -> TrainState:
            return self.program_at(phases.replan(cfg, meta)).abstract

        self.state, meta = self.ckpts.restore(shapes)
        self.position, self.done = tuple(meta["position"]), meta["step"]
        self.stream = self._stream()
        self.at = phases.replan(cfg, meta)
        self.meter = metrics.from_json(meta.get("meter"), meshes.replicated(self.mesh))
        self.current = self.program_at(self.at)
        log.info("resumed at step %d of %d", self.done, cfg.train.steps)
        before = configs.stored(meta["config"]).train.steps
        if before != cfg.train.steps:
            log.info(
                "train.steps was %d and is now %d: all schedules (learning rate, KL weight, what "
                "trains) are recomputed for the new length from step %d on",
                before,
                cfg.train.steps,
                self.done + 1,
            )

    def _stream(self) -> Prefetch[tuple[Batch, Position]]:
        """Starts to read batches, in a thread, while parameters are prepared."""
        run = self.run
        part, parts = meshes.row_part(self.mesh, run.rows.batch_rows)
        stream = batches(
            run.data["train"],
            run.rows,
            self.position,
            process_index=part,
            process_count=parts,
            workers=self.cfg.data.workers,
        )
        return self.opened.enter_context(stream)

    def _claim(self) -> None:
        """Binds the folder to this run."""
        if processes.first():
            build.save_tokenizers(self.run)
            workdir.claim(self.run.workdir, self.cfg)

    # --- the parts of the loop, in their order ----------------------------------------------------

    @contextmanager
    def running(self, *, resumed: bool) -> Generator[None, None, None]:
        """Prepares or restores the state, and holds the stream of batches and log files open."""
        with ExitStack() as self.opened:
            if resumed:
                self.restore()
            else:
                self.start()
            self._begin()
            self.spent.enter(goodput.TRAINING)
            yield

    def _begin(self) -> None:
        """Opens checkpoints and logs, prepares validation, and starts the clock."""
        cfg, run = self.cfg, self.run
        self.base = meshes.everywhere(self.key["train"], self.mesh)
        self.writer = metrics.Writer(
            run.workdir,
            resume_step=self.done,
            total_steps=cfg.train.steps,
            active=processes.first(),
            config=cfg,
        )
        self.validate = checks.validation(run, self.mesh, self.key["valid"])
        self.per_token = checks.per_token_of(run)
        self.clock = _Clock(self.done)
        guard = jax.transfer_guard("disallow")
        for resource in (self.ckpts, self.writer, self.stop.at_steps(), guard):
            self.opened.enter_context(resource)

    def enter_phase(self) -> bool:
        """Begins the next phase if this one is over; returns False after the last one."""
        if not self.at.over:
            return True
        if self.at.index + 1 == len(self.plan):
            return False
        self.at = self.at.following(self.done)
        with jax.transfer_guard("allow"):  # once per phase, not once per step
            self.current = self.program_at(self.at)
            self.state = self.current.start(self.state.params)
        program.log_phase(self.current, self.state.params)
        self.clock, self.compiled = _Clock(self.done), False
        return True

    def update(self) -> None:
        """Reads batches and trains on them, `train.steps_per_call` updates at once."""
        together = self.cfg.train.steps_per_call
        self.done += together
        with self.spent.of(goodput.WAITING):
            read = [next(self.stream) for _ in range(together)]
            self.batch, self.position = read[-1]
        doing = goodput.TRAINING if self.compiled else goodput.COMPILING
        slow = waiting.announced("compiling the training step", enabled=not self.compiled)
        step = jax.profiler.StepTraceAnnotation("train", step_num=self.done)
        with slow, step, self.spent.of(doing):
            placed = _placed([batch for batch, _ in read], self.mesh)
            self.state, sums = self.current.train_step(self.state, placed, self.base)
        self.compiled = True
        self.meter = metrics.add(self.meter, sums)
        self.writer.progress(self.done)

    @property
    def due(self) -> bool:
        """Whether this step ends with a check."""
        end = self.at.begin + self.current.phase.steps
        return self.done % self.cfg.train.check_every == 0 or self.done == end

    def log_lap(self) -> _Lap:
        """Logs the mean values of training since the last log line.

        Raises: TrainingError if a loss or gradient was not finite.
        """
        assert self.meter is not None  # there was an update
        values = metrics.ratios(self.meter)
        sentences = float(jax.device_get(self.meter["sentences"].sum))
        _stop_if_not_finite(values, self.clock.step, self.done, self.ckpts)
        section = self.current.phase.optim.to_dict()
        with jax.transfer_guard("allow"):
            schedule = optim.learning_rate(section, self.current.phase.steps)
            rate = float(schedule(self.done - self.at.begin - 1))
        lap = values | {"lr": rate} | self.clock.lap(self.done, values)
        self._report({f"train/{name}": value for name, value in lap.items()})
        self.meter = None
        return _Lap(values, sentences)

    def check(self, lap: _Lap) -> float | None:
        """Validates, logs, and decides whether the phase is over.

        Returns: the bound to select the best checkpoint by; None while bounds are not comparable.
        """
        current, done = self.current, self.done
        if current.tune_step:
            placed = meshes.to_device(self.batch, self.mesh)
            self.state = current.tune_step(self.state, placed, self.base)
        first = waiting.announced("compiling validation", enabled=self.checked is not current)
        with first, self.spent.of(goodput.EVALUATING):
            valid, kl_gz = self.validate(current, self.state.params, done)
        self.checked = current
        compared = self.per_token(current.phase, lap.values, valid)
        bound = current.phase.bound(valid["rec"], valid["kl"])
        final = self.at.counts(current.phase, done)
        self.at = self.at.checked(current.phase, done, bound, compared["bound"])
        overfit = overfitting.find(
            **compared,
            best=self.at.per_token,
            stalled=self.at.stalled,
            sentences=lap.sentences,
            limit=self.cfg.train.overfit_gap,
        )
        row = {f"valid/{name}": value for name, value in valid.items()}
        self._report(row | (overfit.row() if overfit else {}))
        if kl_gz is not None:
            self.writer.spread(done, "valid/kl_of_dimensions", kl_gz)
        if overfit and not self.warned:
            log.warning("step %d: overfitting: %s. %s", done, overfit, overfitting.REMEDY)
        self.warned = overfit is not None
        if self.at.over and done < self.at.begin + current.phase.steps:
            log.info(
                "step %d: no better validation -ELBO in %d checks, so this phase ends",
                done,
                self.at.stalled,
            )
        # Bounds under different objectives are not comparable: the best checkpoint is that of the
        # last phase with its final objective. Until then the latest one is used.
        return bound if final and self.at.index + 1 == len(self.plan) else None

    def save(self, best: float | None) -> None:
        """Saves a checkpoint, and as the best one if its bound is the lowest."""
        # With several processes Orbax makes its own transfers.
        with self.spent.of(goodput.SAVING), jax.transfer_guard("allow"):
            if self.ckpts.latest() is None:
                self._claim()  # first, so that every checkpoint has its tokenizers
            self.writer.flush()
            meta = {
                "position": list(self.position),
                "config": configs.to_json(self.cfg),
                "phase": self.at._asdict(),
                identity.KEY: self.record,
                "meter": metrics.to_json(self.meter),
            }
            if best is not None:
                self.ckpts.save_best(self.done, self.state, meta, best)
            self.ckpts.save(self.done, self.state, meta)
        self.clock = _Clock(self.done)

    def finish(self) -> None:
        """Waits until the last checkpoint is written."""
        with self.spent.of(goodput.SAVING), jax.transfer_guard("allow"):
            self.ckpts.wait()
        log.info(self.spent.line())

    def _report(self, values: Mapping[str, Value]) -> None:
        self.writer.write(self.done, values)
        with jax.transfer_guard("allow"):
            answers = [callback(self.done, dict(values)) for callback in self.callbacks]
            if any(answer is True for answer in answers):
                self.stop.ask("a callback")


class _Clock:
    """Speed since the last lap; the only values that differ between otherwise equal runs."""

    def __init__(self, step: int):
        self.step, self._at = step, time.monotonic()

    def lap(self, step: int, values: dict[str, float]) -> dict[str, float]:
        now = time.monotonic()
        seconds, steps = max(now - self._at, 1e-9), step - self.step
        self.step, self._at = step, now
        return {
            "time/step_ms": 1e3 * seconds / steps,
            "time/sentences_per_s": values["sentences"] * steps / seconds,
            "time/tokens_per_s": values["tokens"] * steps / seconds,
        }


def _stop_if_not_finite(values: dict[str, float], after: int, now: int, ckpts: Checkpoints) -> None:
    if values["finite"] < 1.0:
        last = ckpts.latest()
        kept = f"the last checkpoint, step {last}, is kept"
        if last is None:
            kept = "no checkpoint was saved yet, so the same --workdir can be started over"
        raise TrainingError(
            f"loss or gradient was not finite between steps {after + 1} and {now} (those updates "
            f"were skipped); {kept}. Lower optim.lr or optim.clip, or check the data"
        )


def _placed(batches: list[Batch], mesh: Mesh) -> Batch:
    """Puts the batches of one call on the devices, stacked along a new first axis if several."""
    if len(batches) == 1:
        return meshes.to_device(batches[0], mesh)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    return meshes.to_device(stacked, mesh, stacked=True)
