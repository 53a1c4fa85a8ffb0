"""The train and validation steps: pure functions, each traced once, without host code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jvae.api import (
    TUNE_STREAM,
    Batch,
    Measure,
    Params,
    Post,
    Terms,
    TextVAE,
    Tune,
    example_keys,
)
from jvae.latent import null
from jvae.latent.elbo import measure
from jvae.runs.metrics import Ratio, Sums
from jvae.training import freezing
from jvae.training.freezing import TrainablePlan
from jvae.training.objectives import Loss, Objective, Totals, batch_loss

Noise = Callable[[Key[Array, "e"], Batch], Batch]


class TrainState(NamedTuple):
    """Everything that changes from step to step."""

    params: Params  # all parameters
    opt_state: optax.OptState  # for the parameters that train at some point
    step: Int[Array, ""]  # number of optimizer steps done


TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]
TuneStep = Callable[[TrainState, Batch, Key[Array, ""]], TrainState]
ValidStep = Callable[[Params, Batch, Key[Array, ""]], tuple[Sums, Post | None]]


DEFAULT_RNG = "threefry2x32"


def with_rng(key: Key[Array, ""], rng: str) -> Key[Array, ""]:
    """A key for another generator, derived from a default one."""
    if rng == DEFAULT_RNG:
        return key
    size = jax.random.key_data(jax.random.key(0, impl=rng)).shape
    return jax.random.wrap_key_data(jax.random.bits(key, size, jnp.uint32), impl=rng)


class StepKeys(NamedTuple):
    """Random keys of one step, split once by purpose."""

    latent: Key[Array, ""]
    drop: Key[Array, ""]
    noise: Key[Array, ""]

    @classmethod
    def at(cls, base: Key[Array, ""], step: Int[Array, ""]) -> "StepKeys":
        """The keys of a step. They depend only on the run's base key and the step, so a resumed run
        repeats them.
        """
        return cls(*jax.random.split(jax.random.fold_in(base, step), len(cls._fields)))


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    plan: TrainablePlan | None = None,
    begin: int = 0,
) -> TrainState:
    """The state after `begin` steps, with a fresh optimizer. Without a plan everything trains."""
    trained, _ = freezing.split(plan, params)
    return TrainState(params, tx.init(trained), jnp.full((), begin, jnp.int32))


def _loss_sums(loss: Loss, terms: Terms) -> Sums:
    """The metrics of one pass over a batch, in nats."""
    valid_e = terms.valid_e
    sentences = jnp.sum(valid_e).astype(jnp.float32)

    def mean(value_e: Array) -> Ratio:
        return Ratio(jnp.sum(jnp.where(valid_e, value_e, 0.0)), sentences)

    sums = {"loss": mean(loss.total_e), "rec": mean(terms.nll_e), "kl": mean(loss.kl_e)}
    return sums | {f"aux/{name}": mean(value_e) for name, value_e in terms.aux.items()}


def _row_sums(batch: Batch) -> Sums:
    """The size of a batch and its packing efficiency."""
    unit = jnp.ones(())
    sides = [side for side in (batch.enc, batch.dec, batch.cond) if side is not None]
    places = sum(side.segment_bt.size for side in sides) * unit
    read = sum((jnp.sum(side.segment_bt > 0) for side in sides), start=0.0 * unit)
    sentences = jnp.sum(batch.valid_e).astype(jnp.float32)
    return {
        "sentences": Ratio(sentences, unit),
        "tokens": Ratio(read, unit),
        "padding": Ratio(places - read, places),
        "empty_slots": Ratio(batch.valid_e.size - sentences, batch.valid_e.size * unit),
    }


def make_train_step(
    model: TextVAE,
    objective: Objective,
    beta: Callable[[Array], Array],
    tx: optax.GradientTransformation,
    plan: TrainablePlan | None = None,
    *,
    measure_at: Measure | None = None,
    begin: int = 0,
    accumulate: int = 1,
    noise: Noise | None = None,
    dropout_rng: str = DEFAULT_RNG,
) -> TrainStep:
    """step(state, batch, base_key) -> (state, sums): one optimizer update of the trained
    parameters.

    Args:
      measure_at: measures a batch in training, if not by `jvae.latent.elbo.measure`.
      begin: steps before this phase; schedules count from there, random keys do not.
      accumulate: number of parts into which the rows of a batch are split; they are measured one
        after another, and the update is that of the whole batch.
      noise: (key_e, batch) -> batch, applied to the inputs in training only; one key per example.
      dropout_rng: JAX's name of the generator of dropout masks.

    The sums stay on the device, so that the host loop never waits between log lines. `finite`
    counts the steps with finite loss and gradient norm; a non-finite update is skipped, so that the
    state remains usable when the host stops the run.
    """
    take = measure_at or measure_with(training_posterior(model, objective))

    def train_step(state: TrainState, batch: Batch, base: Key[Array, ""]):
        keys = StepKeys.at(base, state.step)
        drop = with_rng(keys.drop, dropout_rng)
        now = state.step - begin
        weight = beta(now)
        totals, rows = Totals.of(batch), _row_sums(batch)
        if noise is not None:
            batch = noise(example_keys(keys.noise, batch.id_e), batch)
        trained, frozen = freezing.split(plan, state.params)

        def loss_fn(trained: Params, part: Batch, drop: Key[Array, ""]):
            params = freezing.merge(plan, trained, frozen)
            terms = take(now, params, part, keys.latent, drop)
            value, loss = batch_loss(objective, terms, weight, totals)
            return value, _loss_sums(loss, terms)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate == 1:
            (value, sums), grads = value_and_grad(trained, batch, drop)
        else:

            def add_part(total: Any, inputs: tuple[Batch, Array]):
                part, number = inputs
                result = value_and_grad(trained, part, jax.random.fold_in(drop, number))
                return jax.tree.map(jnp.add, total, result), None

            parts = _parts(batch, accumulate), jnp.arange(accumulate)
            shapes = jax.eval_shape(value_and_grad, trained, _part(parts[0], 0), drop)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            ((value, sums), grads), _ = jax.lax.scan(add_part, zeros, parts)
        grads = freezing.active(freezing.from_steps(plan), grads, now)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        trained = jax.tree.map(keep, optax.apply_updates(trained, updates), trained)
        params = freezing.merge(plan, trained, frozen)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        unit = jnp.ones(())
        sums |= rows | {
            "finite": Ratio(finite.astype(jnp.float32), unit),
            "grad_norm": Ratio(norm, unit),
            "beta": Ratio(jnp.asarray(weight, jnp.float32), unit),
        }
        return TrainState(params, opt_state, state.step + 1), sums

    return train_step


def several(train_step: TrainStep) -> TrainStep:
    """Runs several updates in one program, on batches stacked along a new first axis, so that the
    host dispatches once for all of them. Returns the last state and the sums over all steps.
    """

    def steps(state: TrainState, batches: Batch, base: Key[Array, ""]) -> tuple[TrainState, Sums]:
        state, sums = jax.lax.scan(lambda s, batch: train_step(s, batch, base), state, batches)
        return state, jax.tree.map(lambda a_s: jnp.sum(a_s, axis=0), sums)

    return steps


def training_posterior(model: TextVAE, objective: Objective) -> TextVAE:
    """The model with the posterior that an objective uses in training."""
    if objective.z == "posterior":
        return model
    return model._replace(post=null.at_zero(model.latent_shape))


def measure_with(model: TextVAE) -> Measure:
    """`jvae.latent.elbo.measure` for a model, the same at every step."""
    return lambda step, params, batch, key, drop: measure(model, params, batch, key, drop)


def _parts(batch: Batch, parts: int) -> Batch:
    """Splits rows and examples into parts along a new first axis. Takes every parts-th row, so that
    rows spread over devices stay where they are.
    """
    rows = batch.dec.token_bt.shape[0]

    def cut(a: Array) -> Array:
        by_row = a.reshape(rows // parts, parts, -1)
        return jnp.moveaxis(by_row, 1, 0).reshape(parts, a.shape[0] // parts, *a.shape[1:])

    return jax.tree.map(cut, batch)


def _part(batches: Batch, index: int) -> Batch:
    return jax.tree.map(lambda a: a[index], batches)


def make_tune_step(tune: Tune) -> TuneStep:
    """step(state, batch, base_key) -> state: tunes parameters between updates (step sizes)."""

    def tune_step(state: TrainState, batch: Batch, base: Key[Array, ""]) -> TrainState:
        key = jax.random.fold_in(StepKeys.at(base, state.step).latent, TUNE_STREAM)
        return state._replace(params=tune(state.params, batch, key))

    return tune_step


def make_valid_step(
    model: TextVAE, objective: Objective, beta: float, watched: bool = False
) -> ValidStep:
    """step(params, batch, key) -> (sums, posterior) with dropout off and the final KL weight, so
    that runs and steps are comparable.

    Args:
      watched: also return the posterior after the sums, for models with an encoder; otherwise the
        posterior is None.
    """

    take = training_posterior(model, objective)

    def valid_step(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Sums, Post | None]:
        post, once = None, take
        if watched:  # encode each sentence once, here, and pass the result to `measure`
            cond = take.gen.condition(params, batch)
            post = take.post.encode(params, batch, cond=cond)
            once = take._replace(
                gen=take.gen._replace(condition=lambda *_: cond),
                post=take.post._replace(encode=lambda *_, **__: post),
            )
        terms = measure(once, params, batch, key)
        sums = _loss_sums(batch_loss(objective, terms, beta)[1], terms) | _row_sums(batch)
        return sums, post

    return valid_step
