"""The train step and the validation step: pure functions, one trace each, no host code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jvae.api import Batch, Params, TextVAE, measure
from jvae.objectives import Objective, batch_loss

Sums = dict[str, Float[Array, ""]]  # sums over valid sentences or steps; the host divides


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: Params
    opt_state: Any
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


def init_state(model: TextVAE, tx: optax.GradientTransformation, key: Key[Array, ""]) -> TrainState:
    """Fresh parameters and optimizer state."""
    params = model.init(key)
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))


def _sums(loss: Any, terms: Any) -> Sums:
    valid_e = terms.valid_e

    def total(value_e: Array) -> Array:
        return jnp.sum(jnp.where(valid_e, value_e, 0.0))

    sums = {
        "sentences": jnp.sum(valid_e).astype(jnp.float32),
        "tokens": total(terms.scored_e.astype(jnp.float32)),
        "loss": total(loss.total_e),
        "rec": total(terms.nll_e),
        "kl": total(loss.kl_e),
    }
    return sums | {f"aux/{name}": total(value_e) for name, value_e in terms.aux.items()}


def make_train_step(
    model: TextVAE,
    objective: Objective,
    beta: Callable[[Array], Array],
    tx: optax.GradientTransformation,
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]:
    """step(state, batch, base_key) -> (state, sums): one optimizer update.

    The sums stay on the device, so the host loop waits for nothing between log lines. `finite`
    counts the steps whose loss and gradient norm were finite; an update that is not is skipped, so
    the state stays usable when the host stops the run.
    """

    def train_step(state: TrainState, batch: Batch, base: Key[Array, ""]):  # noqa: ANN202
        keys = StepKeys.at(base, state.step)
        weight = beta(state.step)

        def loss_fn(params: Params):  # noqa: ANN202
            terms = measure(model, params, batch, keys.latent, keys.drop)
            value, loss = batch_loss(objective, terms, weight)
            return value, _sums(loss, terms)

        (value, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        params = jax.tree.map(keep, params, state.params)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        sums |= {
            "steps": jnp.ones(()),
            "finite": finite.astype(jnp.float32),
            "grad_norm": norm,
            "beta": jnp.asarray(weight, jnp.float32),
        }
        return TrainState(params, opt_state, state.step + 1), sums

    return train_step


def make_valid_step(
    model: TextVAE, objective: Objective, beta: float
) -> Callable[[Params, Batch, Key[Array, ""]], Sums]:
    """step(params, batch, key) -> sums with dropout off and the final KL weight, so that runs and
    steps compare.
    """

    def valid_step(params: Params, batch: Batch, key: Key[Array, ""]) -> Sums:
        terms = measure(model, params, batch, key)
        return _sums(batch_loss(objective, terms, beta)[1], terms)

    return valid_step


def add(meter: Sums, sums: Sums) -> Sums:
    """The meter with one more step's sums."""
    return jax.tree.map(jnp.add, meter, sums)
