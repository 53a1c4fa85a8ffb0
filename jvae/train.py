"""The training loop, top to bottom."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import initial, metrics, optim, run, schedules, step, trainable, workdir
from jvae.api import Batch, Params
from jvae.checkpoint import Checkpoints
from jvae.data.dataset import batches, eval_batches
from jvae.errors import ConfigError, TrainingError
from jvae.loading import load_params
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.tree import sizes

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What a finished training leaves in memory: the run, its mesh, the best parameters."""

    run: run.Run
    mesh: Mesh
    params: Params
    step: int  # of these parameters


def to_device(batch: Batch, mesh: Mesh) -> Batch:
    """Rows and examples of a host batch, cut over the mesh's row axes."""
    return jax.device_put(batch, meshes.batch_sharding(mesh))


def train(config: ConfigDict, folder: Path) -> Trained:
    """Trains the run of a config, from its newest checkpoint where there is one.

    Raises: JvaeError for all that is wrong with config, data, folder or the run itself.
    """
    # --- what depends on the config alone, so that a mistake is told at once ----------------------
    begin = time.monotonic()
    objective = run.build_objective(config)
    beta = schedules.build(config.objective.beta, config.train.steps)
    mesh = meshes.make_mesh(config.mesh)
    shards = meshes.row_shards(mesh)
    if config.data.batch_rows % shards:
        raise ConfigError(
            f"data.batch_rows is {config.data.batch_rows}; the mesh cuts rows into {shards} parts, "
            "so use a multiple of that"
        )

    # --- data and model ---------------------------------------------------------------------------
    workdir.check(folder, config)
    this = run.open_run(config, folder)
    workdir.claim(folder, config)
    run.save_tokenizers(this)
    for line in this.log:
        log.info(line)
    cfg, model = this.config, this.model
    key = run.seeds(cfg.seed)

    # --- shardings --------------------------------------------------------------------------------
    abstract, where = run.param_shardings(model, mesh)
    plan = trainable.make_plan(cfg.optim.trainable, abstract, model.axes, cfg.train.steps)
    trained = jax.eval_shape(lambda params: trainable.split(plan, params)[0], abstract)
    tx = optim.build(cfg.optim, trained, cfg.train.steps, trainable.from_steps(plan))
    opt_where = rules.optimizer_shardings(tx, trained, trainable.pick(plan, where), mesh)
    state_where = step.TrainState._make((where, opt_where, meshes.replicated(mesh)))

    # --- steps ------------------------------------------------------------------------------------
    sampler = run.build_sampler(cfg, model)
    train_step = jax.jit(
        step.make_train_step(
            model,
            objective,
            beta,
            tx,
            plan=plan,
            measure_at=sampler.measure if sampler else None,
        ),
        donate_argnums=0,
        out_shardings=(state_where, meshes.replicated(mesh)),
    )
    tune_step = None
    if sampler and sampler.tune:
        tune_step = jax.jit(
            step.make_tune_step(sampler.tune), donate_argnums=0, out_shardings=state_where
        )
    last_beta = float(cfg.objective.beta.stop)
    valid_step = jax.jit(step.make_valid_step(model, objective, last_beta))

    # --- state: own checkpoint, weights or scratch ------------------------------------------------
    init = jax.jit(lambda params: step.init_state(params, tx, plan), out_shardings=state_where)
    abstract_state = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        jax.eval_shape(init, abstract),
        state_where,
    )
    ckpts = Checkpoints(folder, keep_last=cfg.train.keep)
    position, first = (0, 0), 0
    if ckpts.latest() is None:
        state = init(initial.initial_params(this, where, key["init"]))
    else:
        state, meta = ckpts.restore(abstract_state)
        position, first = tuple(meta["position"]), meta["step"]
        log.info("resumed at step %d of %d", first, cfg.train.steps)
    counts = sizes(abstract, depth=1)
    ever, every = trainable.counts(plan, abstract, cfg.train.steps)
    if ever < every:
        log.info("%d of %d parameters train, %.2f %%", ever, every, 100 * ever / every)
    log.info(
        "%d parameters (%s), mesh %s, ready in %.1f s",
        sum(counts.values()),
        ", ".join(f"{name} {n:,}" for name, n in counts.items()),
        dict(mesh.shape),
        time.monotonic() - begin,
    )

    # --- loop -------------------------------------------------------------------------------------
    total = cfg.train.steps
    base = jax.device_put(key["train"], meshes.replicated(mesh))
    writer = metrics.Writer(folder, resume_step=first, total_steps=total)
    stream = batches(this.data["train"], this.rows, position)
    check = _checker(this, mesh, valid_step, key["valid"])
    meter: metrics.Sums | None = None
    clock = _Clock(first)
    with ckpts, writer, stream, jax.transfer_guard("disallow"):
        for done in range(first + 1, total + 1):
            batch, position = next(stream)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, sums = train_step(state, to_device(batch, mesh), base)
            meter = metrics.add(meter, sums)
            writer.progress(done)
            due = done % cfg.train.check_every == 0 or done == total
            if due or done % cfg.train.log_every == 0:
                values = metrics.ratios(meter)
                _stop_if_not_finite(values, clock.step, done, ckpts)
                writer.write(
                    done, {f"train/{k}": v for k, v in (values | clock.lap(done, values)).items()}
                )
                meter = None
            if due and tune_step:
                state = tune_step(state, to_device(batch, mesh), base)
            if due:
                valid = check(state.params, done)
                writer.write(done, {f"valid/{k}": v for k, v in valid.items()})
                writer.flush()
                meta = {"position": list(position), "config": configs.to_json(cfg)}
                ckpts.save_best(done, state, meta, valid["loss"])
                ckpts.save(done, state, meta)
                clock = _Clock(done)

    # --- best parameters --------------------------------------------------------------------------
    return Trained(this, mesh, *load_params(model, mesh, folder))


class _Clock:
    """Speed since the last lap; its values are the only ones that differ between equal runs."""

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
        raise TrainingError(
            f"loss or gradient was not finite between steps {after + 1} and {now} (those updates "
            f"were skipped); the last checkpoint, step {ckpts.latest() or 'none'}, is kept. Lower "
            "optim.lr or optim.clip, or look at the data, and start again"
        )


def _checker(
    this: run.Run,
    mesh: Mesh,
    valid_step: Callable[..., metrics.Sums],
    key: Key[Array, ""],
) -> Callable[[Params, int], dict[str, Any]]:
    """Validation: the whole split, dropout off, the final KL weight, the same noise every time."""
    key = jax.device_put(key, meshes.replicated(mesh))
    alarm = this.config.train.collapse_kl
    # A sampler's posterior has no KL to watch here; the evaluation measures it.
    watched = this.model.latent_shape[0] > 0 and this.model.post.log_q is not None

    def check(params: Params, done: int) -> dict[str, Any]:
        sums: metrics.Sums | None = None
        for batch in eval_batches(this.data["valid"], this.rows):
            sums = metrics.add(sums, valid_step(params, to_device(batch, mesh), key))
        assert sums is not None  # a split has at least one sentence
        values = metrics.ratios(sums)
        row: dict[str, Any] = {name: values[name] for name in ("loss", "rec", "kl")}
        row["neg_elbo"] = values["rec"] + values["kl"]
        if watched:
            row["collapsed"] = int(values["kl"] < alarm)
            if row["collapsed"]:
                log.warning(
                    "step %d: the validation KL is %.3f nats: the posterior has collapsed to the "
                    "prior, or has not left it yet. Slower or cyclic objective.beta, or a "
                    "objective.kl_floor, keep it in use",
                    done,
                    values["kl"],
                )
        return row

    return check
