"""The training loop, from top to bottom."""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.api import Batch, Params
from jvae.data.dataset import batches, eval_batches
from jvae.errors import CheckpointError, ConfigError, TrainingError
from jvae.evals import overfitting
from jvae.latent.kl import per_dimension
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.runs import build, identity, metrics, phases, workdir
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.console import Value
from jvae.runs.loading import load_params
from jvae.runs.phases import PhaseProgress
from jvae.training import goodput, init_params, latent_monitor, optim, program, waiting
from jvae.training.goodput import Goodput
from jvae.training.preemption import Stop, Stopped

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
    stop = stop or Stop()
    spent = Goodput()
    # --- checks of the config alone, so that errors show at once ----------------------------------
    begin = time.monotonic()
    plan, at, done = phases.resolve(config), PhaseProgress(), 0
    steps, saved = workdir.checkpoints(folder), identity.saved(folder)
    if saved:
        workdir.check(folder, config, saved.configs, bool(saved.records))
        at, done = phases.replan(config, saved.last), saved.last["step"]
    mesh = meshes.make_mesh(config.mesh)
    shards = meshes.row_shards(mesh) * config.train.accumulate
    if config.data.batch_rows % shards:
        raise ConfigError(
            f"data.batch_rows is {config.data.batch_rows}; mesh and train.accumulate cut rows into "
            f"{shards} parts, so use a multiple of that"
        )

    # --- data and model ---------------------------------------------------------------------------
    run = build.open_run(config, folder, saved)
    readers = run.encoder.fingerprint + run.decoder.fingerprint
    processes.agree("config or data", configs.to_json(run.config) + readers)
    for phase in plan:
        for note in phase.notes:
            log.info(note)
    cfg, record = run.config, run.record()
    key = build.seeds(cfg.seed)

    @functools.cache
    def program_at(at: PhaseProgress) -> program.Program:
        return program.compile_phase(run, phases.at_place(plan, at), mesh, at.begin)

    current = program_at(at)  # raises if anything does not fit the model
    if processes.first() and lock:
        lock.take()
        if workdir.checkpoints(folder) != steps:
            raise CheckpointError(
                f"{folder}: another process trained here until now; run the same command again"
            )
    processes.wait("locked")
    for line in run.log:
        log.info(line)

    def claim() -> None:
        if processes.first():
            build.save_tokenizers(run)
            workdir.claim(folder, config)

    # --- state: own checkpoint, weights or scratch ------------------------------------------------
    frozen = {f"params/{path}" for path in current.frozen}
    ckpts = Checkpoints(folder, keep_last=cfg.train.keep, frozen=frozen)
    position = (0, 0)
    meter: metrics.Sums | None = None
    if saved is None:
        shapes, where = current.abstract.params, current.where.params
        state = current.start(init_params.initial_params(run, where, key["init"], shapes))
        if cfg.init.optimizer:
            state = state._replace(opt_state=init_params.initial_optimizer(run, state.opt_state))
    else:
        claim()
        state, meta = ckpts.restore(lambda meta: program_at(phases.replan(cfg, meta)).abstract)
        position, done, at = tuple(meta["position"]), meta["step"], phases.replan(cfg, meta)
        meter = metrics.from_json(meta.get("meter"), meshes.replicated(mesh))
        current = program_at(at)
        log.info("resumed at step %d of %d", done, cfg.train.steps)
        before = configs.stored(meta["config"]).train.steps
        if before != cfg.train.steps:
            log.info(
                "train.steps was %d and is now %d: all schedules (learning rate, KL weight, what "
                "trains) are recomputed for the new length from step %d on",
                before,
                cfg.train.steps,
                done + 1,
            )
    program.log_phase(current, state.params)
    log.info("mesh %s, ready in %.1f s", dict(mesh.shape), time.monotonic() - begin)

    # --- loop -------------------------------------------------------------------------------------
    base = meshes.everywhere(key["train"], mesh)
    writer = metrics.Writer(
        folder,
        resume_step=done,
        total_steps=cfg.train.steps,
        active=processes.first(),
        config=cfg,
    )
    part, parts = meshes.row_part(mesh, run.rows.batch_rows)
    stream = batches(
        run.data["train"],
        run.rows,
        position,
        process_index=part,
        process_count=parts,
        workers=cfg.data.workers,
    )

    def report(values: Mapping[str, Value]) -> None:
        writer.write(done, values)
        with jax.transfer_guard("allow"):
            if True in [callback(done, dict(values)) for callback in callbacks]:
                stop.ask("a callback")

    def rate(current: program.Program, step: int) -> float:
        section = current.phase.optim.to_dict()
        with jax.transfer_guard("allow"):
            return float(optim.learning_rate(section, current.phase.steps)(step - 1))

    check, per_token = _checker(run, mesh, key["valid"]), _per_token(run)
    clock, together = _Clock(done), cfg.train.steps_per_call
    with ckpts, writer, stream, stop.at_steps(), jax.transfer_guard("disallow"):
        spent.enter(goodput.TRAINING)
        compiled = warned = False
        checked: program.Program | None = None  # the program whose validation step is compiled
        while True:
            if at.over:
                if at.index + 1 == len(plan):
                    break
                at = at.following(done)
                with jax.transfer_guard("allow"):  # once per phase, not once per step
                    current = program_at(at)
                    state = current.start(state.params)
                program.log_phase(current, state.params)
                clock, compiled = _Clock(done), False
            done, best = done + together, None
            end = at.begin + current.phase.steps
            with spent.of(goodput.WAITING):
                read = [next(stream) for _ in range(together)]
                batch, position = read[-1]
            doing = goodput.TRAINING if compiled else goodput.COMPILING
            slow = waiting.announced("compiling the training step", enabled=not compiled)
            with slow, jax.profiler.StepTraceAnnotation("train", step_num=done), spent.of(doing):
                placed = _placed([batch for batch, _ in read], mesh)
                state, sums = current.train_step(state, placed, base)
            compiled = True
            meter = metrics.add(meter, sums)
            writer.progress(done)
            due = done % cfg.train.check_every == 0 or done == end
            if due or done % cfg.train.log_every == 0:
                values, seen = metrics.ratios(meter), float(jax.device_get(meter["sentences"].sum))
                _stop_if_not_finite(values, clock.step, done, ckpts)
                lap = values | {"lr": rate(current, done - at.begin)} | clock.lap(done, values)
                report({f"train/{k}": v for k, v in lap.items()})
                meter = None
            if due:
                if current.tune_step:
                    state = current.tune_step(state, meshes.to_device(batch, mesh), base)
                first = waiting.announced("compiling validation", enabled=checked is not current)
                with first, spent.of(goodput.EVALUATING):
                    valid, kl_gz = check(current, state.params, done)
                checked = current
                # A check also writes a log line, which includes these values.
                compared = per_token(current.phase, values, valid)  # pyright: ignore
                bound = current.phase.bound(valid["rec"], valid["kl"])
                final = at.counts(current.phase, done)
                at = at.checked(current.phase, done, bound, compared["bound"])
                overfit = overfitting.find(
                    **compared,
                    best=at.per_token,
                    stalled=at.stalled,
                    sentences=seen,  # pyright: ignore
                    limit=cfg.train.overfit_gap,
                )
                row = {f"valid/{k}": v for k, v in valid.items()}
                report(row | (overfit.row() if overfit else {}))
                if kl_gz is not None:
                    writer.spread(done, "valid/kl_of_dimensions", kl_gz)
                if overfit and not warned:
                    log.warning("step %d: overfitting: %s. %s", done, overfit, overfitting.REMEDY)
                warned = overfit is not None
                if at.over and done < end:
                    log.info(
                        "step %d: no better validation -ELBO in %d checks, so this phase ends",
                        done,
                        at.stalled,
                    )
                # Bounds under different objectives are not comparable: the best checkpoint is that
                # of the last phase with its final objective. Until then the latest one is used.
                if final and at.index + 1 == len(plan):
                    best = bound
            signal = stop.asked(done)
            if due or signal:
                # With several processes Orbax makes its own transfers.
                with spent.of(goodput.SAVING), jax.transfer_guard("allow"):
                    if ckpts.latest() is None:
                        claim()  # first, so that every checkpoint has its tokenizers
                    writer.flush()
                    meta = {
                        "position": list(position),
                        "config": configs.to_json(cfg),
                        "phase": at._asdict(),
                        identity.KEY: record,
                        "meter": metrics.to_json(meter),
                    }
                    if best is not None:
                        ckpts.save_best(done, state, meta, best)
                    ckpts.save(done, state, meta)
                clock = _Clock(done)
            if signal:
                with spent.of(goodput.SAVING), jax.transfer_guard("allow"):
                    ckpts.wait()
                log.info(spent.line())
                raise Stopped(
                    f"{signal}: saved step {done} of {cfg.train.steps} and stopped; run "
                    "the same command to resume"
                )
        with spent.of(goodput.SAVING), jax.transfer_guard("allow"):
            ckpts.wait()
    log.info(spent.line())

    # --- best parameters --------------------------------------------------------------------------
    return Trained(run, mesh, *load_params(run.model, mesh, folder))


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


def _per_token(
    run: build.Run,
) -> Callable[[phases.Phase, dict[str, float], dict[str, float]], dict[str, tuple[float, float]]]:
    """Returns a function of a phase, the values of a lap and those of a check: Rec and -ELBO, each
    for training and validation, in nats per scored token.
    """
    train_data, valid_data = run.data["train"], run.data["valid"]
    # A lap counts the tokens of all sides together; the share of scored ones is that of the split.
    read = sum(float(side.lengths.mean()) for side in train_data.sides.values())
    share = float(train_data.target_lengths.mean()) / read
    length = float(valid_data.target_lengths.mean())

    def per_token(
        phase: phases.Phase, lap: dict[str, float], valid: dict[str, float]
    ) -> dict[str, tuple[float, float]]:
        a, b = share * lap["tokens"] / lap["sentences"], length
        bounds = (phase.bound(values["rec"], values["kl"]) for values in (lap, valid))
        return {
            "rec": (lap["rec"] / a, valid["rec"] / b),
            "bound": (next(bounds) / a, next(bounds) / b),
        }

    return per_token


def _placed(batches: list[Batch], mesh: Mesh) -> Batch:
    """Puts the batches of one call on the devices, stacked along a new first axis if several."""
    if len(batches) == 1:
        return meshes.to_device(batches[0], mesh)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    return meshes.to_device(stacked, mesh, stacked=True)


def _checker(
    run: build.Run, mesh: Mesh, key: Key[Array, ""]
) -> Callable[[program.Program, Params, int], tuple[dict[str, float], np.ndarray | None]]:
    """Validation: the whole split, dropout off, the final KL weight, the same noise every time.
    Returns its values, and the mean KL of each dimension if that has a closed form.
    """
    key = meshes.everywhere(key, mesh)
    data = run.data["valid"]
    # With several programs at once, virtual devices may deadlock waiting for each other's sums.
    one_by_one = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    part, parts = meshes.row_part(mesh, run.rows.batch_rows)
    # The first sentences form batches of their own, because their posteriors are kept.
    first, rest = np.split(np.arange(len(data)), [latent_monitor.SENTENCES])

    def check(
        current: program.Program, params: Params, done: int
    ) -> tuple[dict[str, float], np.ndarray | None]:
        sums: metrics.Sums | None = None
        kl_gz = None
        kept = []
        for ids in (first, rest) if len(rest) else (first,):
            for batch in eval_batches(data, run.rows, ids, process_index=part, process_count=parts):
                batch = meshes.to_device(batch, mesh)
                batch_sums, post = current.valid_step(params, batch, key)
                sums = metrics.add(sums, batch_sums)
                if ids is first and post is not None:
                    kept.append((batch.id_e, post))
                if one_by_one:
                    jax.block_until_ready(sums)
        assert sums is not None  # a split has at least one sentence
        values = metrics.ratios(sums)
        row = {name: values[name] for name in ("loss", "rec", "kl")}
        row["neg_elbo"] = values["rec"] + values["kl"]
        if current.watched and len(first) > 1:  # a variance over sentences needs two
            with jax.transfer_guard("allow"):  # once per check
                use = latent_monitor.latent_use(run.model, params, kept, key, values["kl"])
            kl_gz = use.kl_gz
            row |= {
                "collapsed": int(bool(use.collapse_reasons)),
                "mi": use.mi_nats,
                "au": use.active,
            }
            if use.collapse_reasons:
                dimensions = per_dimension(run.model.post, run.model.prior)
                log.warning(
                    "step %d: the latent is not used (%s): the posterior has collapsed to the "
                    "prior, or has not left it yet. Slower or cyclic objective.beta%s keeps it "
                    "in use",
                    done,
                    "; ".join(use.collapse_reasons),
                    ", or objective.free_bits," if dimensions else "",
                )
        return row, kl_gz

    return check
