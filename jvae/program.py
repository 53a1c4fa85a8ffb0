"""The compiled steps of one phase, and where its state lives."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jvae import metrics, optim, run, schedules, step, trainable
from jvae.api import Params, Post
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.phases import Phase
from jvae.step import TrainState
from jvae.tree import sizes

log = logging.getLogger(__name__)


class Program(NamedTuple):
    """What the loop needs of a phase.

    start(params) -> TrainState with a fresh optimizer, from fresh parameters or those of the phase
    before. abstract: that state without its values, with shardings. tune_step: None for models
    without. valid_step gives sums, and posteriors where they are watched: where validation measures
    a latent that can collapse.
    """

    phase: Phase
    plan: trainable.Plan | None
    start: Callable[[Params], TrainState]
    train_step: Callable[..., tuple[TrainState, metrics.Sums]]
    tune_step: Callable[..., TrainState] | None
    valid_step: Callable[..., tuple[metrics.Sums, Post | None]]
    abstract: TrainState
    where: TrainState
    watched: bool


def compile_phase(this: run.Run, phase: Phase, mesh: Mesh, begin: int) -> Program:
    """The steps of a phase that begins after `begin` steps of the run; each compiles when first
    called.

    Raises: ConfigError for an optimizer, objective or trainability rules that do not fit the model.
    """
    cfg, model = this.config, this.model
    objective = run.build_objective(phase.objective)
    beta = schedules.build(phase.objective.beta, phase.steps)
    abstract, where = run.param_shardings(model, mesh)
    plan = trainable.make_plan(
        phase.optim.trainable, abstract, model.axes, phase.steps, cfg.model.to_dict()
    )
    trained = jax.eval_shape(lambda params: trainable.split(plan, params)[0], abstract)
    tx = optim.build(phase.optim.to_dict(), trained, phase.steps, trainable.from_steps(plan))
    opt_where = rules.optimizer_shardings(tx, trained, trainable.pick(plan, where), mesh)
    one: Any = meshes.replicated(mesh)
    state_where = TrainState(where, opt_where, one)

    def start(params: Params) -> TrainState:
        return step.init_state(params, tx, plan, begin)

    sampler = run.build_sampler(cfg, model) if objective.z == "posterior" else None
    train_step = step.make_train_step(
        model,
        objective,
        beta,
        tx,
        plan,
        measure_at=sampler.measure if sampler else None,
        noise=run.build_noise(phase.noise, cfg, this.encoder, this.decoder),
        begin=begin,
        accumulate=cfg.train.accumulate,
    )
    tune_step = None
    if sampler and sampler.tune:
        tune = meshes.under(mesh, step.make_tune_step(sampler.tune))
        tune_step = jax.jit(tune, donate_argnums=0, out_shardings=state_where)
    # A sampler's posterior has no KL to watch here; the evaluation measures it.
    watched = (
        objective.z == "posterior" and model.latent_shape[0] > 0 and model.post.log_q is not None
    )
    valid_step = step.make_valid_step(model, objective, float(phase.objective.beta.stop), watched)
    if cfg.train.steps_per_call > 1:
        train_step = step.several(train_step)
    train_step = meshes.under(mesh, train_step)
    valid_step = meshes.under(mesh, valid_step)
    begun = jax.jit(start, out_shardings=state_where)
    return Program(
        phase=phase,
        plan=plan,
        start=begun,
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(state_where, one)),
        tune_step=tune_step,
        valid_step=jax.jit(valid_step),
        abstract=_with_shardings(jax.eval_shape(begun, abstract), state_where),
        where=state_where,
        watched=watched,
    )


def log_phase(program: Program, params: Any) -> None:
    """What is about to train, in one line."""
    phase = program.phase
    ever, every = trainable.counts(program.plan, params, phase.steps)
    share = "" if ever == every else f"; {ever:,} train, {100 * ever / every:.2f} %"
    parts = ", ".join(f"{name} {n:,}" for name, n in sizes(params, depth=1).items())
    name = f"{phase.name}, {phase.steps} steps: " if phase.name else ""
    log.info("%s%s parameters (%s)%s", name, f"{every:,}", parts, share)


def _with_shardings(abstract: Any, where: Any) -> Any:
    def placed(a: Array, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(placed, abstract, where)
