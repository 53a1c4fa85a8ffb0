"""The train step and the validation step: pure functions, one trace each, no host code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jvae import trainable
from jvae.api import Batch, Params, Terms, TextVAE, measure
from jvae.metrics import Ratio, Sums
from jvae.objectives import Loss, Objective, batch_loss
from jvae.trainable import Plan


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: Params  # all of them
    opt_state: Any  # of the ones that ever train
    step: Int[Array, ""]  # optimizer steps done


class StepKeys(NamedTuple):
    """Random keys of one step, split once by use."""

    latent: Key[Array, ""]
    drop: Key[Array, ""]

    @classmethod
    def at(cls, base: Key[Array, ""], step: Int[Array, ""]) -> "StepKeys":
        """The keys of a step: a function of the run's base key and the step alone, so a resumed run
        repeats them.
        """
        return cls(*jax.random.split(jax.random.fold_in(base, step)))


def init_state(
    params: Params, tx: optax.GradientTransformation, plan: Plan | None = None
) -> TrainState:
    """The state before the first step. Without a plan everything trains."""
    trained, _ = trainable.split(plan, params)
    return TrainState(params, tx.init(trained), jnp.zeros((), jnp.int32))


def _sums(loss: Loss, terms: Terms, batch: Batch) -> Sums:
    """What one pass says of its sentences, in nats, and of how full its rows are."""
    valid_e = terms.valid_e
    sentences = jnp.sum(valid_e).astype(jnp.float32)
    one = jnp.ones(())

    def mean(value_e: Array) -> Ratio:
        return Ratio(jnp.sum(jnp.where(valid_e, value_e, 0.0)), sentences)

    sides = [side for side in (batch.enc, batch.dec, batch.cond) if side is not None]
    places = sum(side.segment_bt.size for side in sides) * one
    read = sum((jnp.sum(side.segment_bt > 0) for side in sides), start=0.0 * one)
    sums = {
        "loss": mean(loss.total_e),
        "rec": mean(terms.nll_e),
        "kl": mean(loss.kl_e),
        "sentences": Ratio(sentences, one),
        "tokens": Ratio(read, one),
        "padding": Ratio(places - read, places),
        "empty_slots": Ratio(valid_e.size - sentences, valid_e.size * one),
    }
    return sums | {f"aux/{name}": mean(value_e) for name, value_e in terms.aux.items()}


def make_train_step(
    model: TextVAE,
    objective: Objective,
    beta: Callable[[Array], Array],
    tx: optax.GradientTransformation,
    plan: Plan | None = None,
    measure_at: Callable[..., Terms] | None = None,
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]:
    """step(state, batch, base_key) -> (state, sums): one optimizer update of what the plan trains.

    Args:
      measure_at: (step, params, batch, key, drop) -> Terms, where training measures a batch in
        another way than `jvae.api.measure` does.

    The sums stay on the device, so the host loop waits for nothing between log lines. `finite`
    counts the steps whose loss and gradient norm were finite; an update that is not is skipped, so
    the state stays usable when the host stops the run.
    """

    def train_step(state: TrainState, batch: Batch, base: Key[Array, ""]):
        keys = StepKeys.at(base, state.step)
        weight = beta(state.step)
        trained, frozen = trainable.split(plan, state.params)

        def loss_fn(trained: Any):
            params = trainable.merge(plan, trained, frozen)
            if measure_at is None:
                terms = measure(model, params, batch, keys.latent, keys.drop)
            else:
                terms = measure_at(state.step, params, batch, keys.latent, keys.drop)
            value, loss = batch_loss(objective, terms, weight)
            return value, _sums(loss, terms, batch)

        (value, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        grads = trainable.active(trainable.from_steps(plan), grads, state.step)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        trained = jax.tree.map(keep, optax.apply_updates(trained, updates), trained)
        params = trainable.merge(plan, trained, frozen)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        one = jnp.ones(())
        sums |= {
            "finite": Ratio(finite.astype(jnp.float32), one),
            "grad_norm": Ratio(norm, one),
            "beta": Ratio(jnp.asarray(weight, jnp.float32), one),
        }
        return TrainState(params, opt_state, state.step + 1), sums

    return train_step


def make_tune_step(
    tune: Callable[[Params, Batch, Key[Array, ""]], Params],
) -> Callable[[TrainState, Batch, Key[Array, ""]], TrainState]:
    """step(state, batch, base_key) -> state: parameters that learn between updates (step sizes)."""

    def tune_step(state: TrainState, batch: Batch, base: Key[Array, ""]) -> TrainState:
        key = jax.random.fold_in(StepKeys.at(base, state.step).latent, 1)
        return state._replace(params=tune(state.params, batch, key))

    return tune_step


def make_valid_step(
    model: TextVAE, objective: Objective, beta: float
) -> Callable[[Params, Batch, Key[Array, ""]], Sums]:
    """step(params, batch, key) -> sums with dropout off and the final KL weight, so that runs and
    steps compare.
    """

    def valid_step(params: Params, batch: Batch, key: Key[Array, ""]) -> Sums:
        terms = measure(model, params, batch, key)
        return _sums(batch_loss(objective, terms, beta)[1], terms, batch)

    return valid_step
