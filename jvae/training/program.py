"""The compiled steps of one phase, and the sharding of its state."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Params, TextVAE
from jvae.config import dataclass_from
from jvae.data.tokenizers import TextTokenizer
from jvae.errors import ConfigError
from jvae.parallel import mesh as meshes
from jvae.parallel import rules
from jvae.runs import build, phases, schedules
from jvae.runs.phases import Phase
from jvae.training import corruption, freezing, optim, step, tracking
from jvae.training.objectives import Objective, check_kl
from jvae.training.step import TrainState
from jvae.tree import map_named, sizes

log = logging.getLogger(__name__)

MANY = 100_000_000  # trained parameters above which the log names the alternative


class Program(NamedTuple):
    """The compiled functions of a phase for the training loop.

    start(params) -> TrainState with a fresh optimizer, from fresh parameters or those of the
    previous phase, whose buffers it takes over without a copy. abstract: shapes and shardings of
    that state. frozen: paths of the parameters that no phase of the run trains; their number type
    is `init.frozen_dtype`. tune_step: None for models without tuning. valid_step returns sums, and
    also posteriors if `watched`: validation then measures a latent that can collapse.
    """

    phase: Phase
    plan: freezing.TrainablePlan | None
    start: Callable[[Params], TrainState]
    train_step: step.TrainStep
    tune_step: step.TuneStep | None
    valid_step: step.ValidStep
    abstract: TrainState
    where: TrainState
    watched: bool
    frozen: frozenset[str]


def has_bound(model: TextVAE) -> bool:
    """Whether Rec + KL of validation is -ELBO. The posterior of a sampler has no density, so its KL
    is left to the evaluation.
    """
    return model.latent_shape[0] == 0 or model.post.log_prob is not None


def compile_phase(run: build.Run, phase: Phase, mesh: Mesh, begin: int) -> Program:
    """The steps of a phase that begins after `begin` steps of the run; each is compiled on its
    first call.

    Raises: ConfigError for an optimizer, objective or trainability rules that do not fit the model.
    """
    cfg, model = run.config, run.model
    objective = build_objective(phase.objective)
    beta = schedules.build(phase.objective.beta, phase.steps)
    abstract, where = build.param_shardings(model, mesh)

    def plan_of(phase: Phase) -> freezing.TrainablePlan | None:
        rules, sizes = phase.optim.trainable, cfg.model.to_dict()
        return freezing.make_plan(rules, abstract, model.axes, phase.steps, sizes)

    plan = plan_of(phase)
    frozen = freezing.never_trained([plan, *map(plan_of, phases.resolve(cfg))], abstract)
    if model.post.sampler and model.post.sampler.tune:  # tuned between updates
        frozen = frozenset(path for path in frozen if not path.startswith("posterior/"))
    frozen_dtype = jnp.dtype(cfg.init.frozen_dtype)

    def narrow(params: Params) -> Params:
        """Casts the frozen parameters to their number type, but never to a wider one."""
        return map_named(
            lambda path, leaf: (
                leaf.astype(frozen_dtype)
                if path in frozen and frozen_dtype.itemsize < leaf.dtype.itemsize
                else leaf
            ),
            params,
        )

    abstract = jax.eval_shape(narrow, abstract)
    trained = jax.eval_shape(lambda params: freezing.split(plan, params)[0], abstract)
    tx = optim.build(phase.optim.to_dict(), trained, phase.steps, freezing.from_steps(plan))
    opt_where = rules.optimizer_shardings(tx, trained, freezing.pick(plan, where), mesh)
    replicated: Any = meshes.replicated(mesh)
    state_where = TrainState(where, opt_where, replicated)

    def initial(params: Params) -> TrainState:
        return step.init_state(params, tx, plan, begin)

    def beside(params: Params) -> TrainState:
        return initial(params)._replace(params=())

    beside_params = jax.jit(beside, out_shardings=state_where._replace(params=()))

    def start(params: Params) -> TrainState:
        params = _distinct(jax.device_put(narrow(params), where))
        return beside_params(params)._replace(params=params)

    check_kl(objective, model)
    if (model.gen.coupled or model.post.coupled) and cfg.train.accumulate > 1:
        part = "an auxiliary term" if model.gen.coupled else "the posterior"
        raise ConfigError(
            f"train.accumulate={cfg.train.accumulate}: {part} of this model couples the examples "
            "of a batch, which must be measured whole; set it to 1"
        )
    sampler = model.post.sampler if objective.z == "posterior" else None
    train_step = step.make_train_step(
        model,
        objective,
        beta,
        tx,
        plan,
        measure_at=sampler.measure if sampler else None,
        noise=build_noise(phase.noise, run.encoder, run.decoder),
        begin=begin,
        accumulate=cfg.train.accumulate,
        dropout_rng=cfg.train.get("dropout_rng", step.DEFAULT_RNG),
    )
    if objective.z == "posterior":
        train_step = tracking.tracked(model, train_step)
    tune_step = None
    if sampler and sampler.tune:
        tune = meshes.under(mesh, step.make_tune_step(sampler.tune))
        tune_step = jax.jit(tune, donate_argnums=0, out_shardings=state_where)
    watched = objective.z == "posterior" and model.latent_shape[0] > 0 and has_bound(model)
    valid_step = step.make_valid_step(model, objective, float(phase.objective.beta.stop), watched)
    if cfg.train.steps_per_call > 1:
        train_step = step.several(train_step)
    train_step = meshes.under(mesh, train_step)
    valid_step = meshes.under(mesh, valid_step)
    return Program(
        phase=phase,
        plan=plan,
        start=start,
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(state_where, replicated)),
        tune_step=tune_step,
        valid_step=jax.jit(valid_step),
        abstract=_with_shardings(jax.eval_shape(initial, abstract), state_where),
        where=state_where,
        watched=watched,
        frozen=frozen,
    )


def _distinct(params: Params) -> Params:
    """The parameters without shared buffers: an update donates every leaf."""
    seen: set[int] = set()

    def own(leaf: Array) -> Array:
        if id(leaf) in seen:
            return leaf.copy()
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, params)


def log_phase(program: Program, params: Params) -> None:
    """Logs which parameters are about to train, in one line."""
    phase = program.phase
    trainable, total = freezing.counts(program.plan, params, phase.steps)
    share = "" if trainable == total else f"; {trainable:,} train, {100 * trainable / total:.2f} %"
    parts = ", ".join(f"{name} {n:,}" for name, n in sizes(params, depth=1).items())
    if trainable > MANY:
        log.info(
            "%s parameters train, at least 12 bytes each; presets such as optimus:smollm2 train "
            "small additions around frozen weights instead (docs/pretrained.md)",
            f"{trainable:,}",
        )
    name = f"{phase.name}, {phase.steps} steps: " if phase.name else ""
    log.info("%s%s parameters (%s)%s", name, f"{total:,}", parts, share)


def _with_shardings(abstract: Params, where: Any) -> Params:
    def placed(a: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(placed, abstract, where)


def build_objective(section: ConfigDict) -> Objective:
    """The objective of a config section, without `beta`, which is a separate schedule."""
    return dataclass_from(Objective, {k: v for k, v in section.items() if k != "beta"}, "objective")


def build_noise(
    section: ConfigDict, encoder: TextTokenizer, decoder: TextTokenizer
) -> Callable[[Key[Array, "e"], Batch], Batch] | None:
    """The noise that training applies to input tokens; None if there is none.

    Args:
      section: the `noise` section of the config or of a phase.
    """
    delete, drop = section.enc_delete, section.word_dropout
    if not (delete or drop):
        return None
    drop_id = decoder.pad_id if decoder.unk_id is None else decoder.unk_id

    def noisy(key_e: Key[Array, "e"], batch: Batch) -> Batch:
        if delete and batch.enc is not None:
            enc = corruption.delete_tokens(key_e, batch.enc, delete, encoder.pad_id)
            batch = batch._replace(enc=enc)
        if drop:
            key_e = jax.vmap(lambda key: jax.random.fold_in(key, 2))(key_e)
            batch = corruption.drop_words(key_e, batch, drop, drop_id)
        return batch

    return noisy
