"""The train step and the validation step: pure functions, one trace each, no host code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jvae.api import Batch, Params, Terms, TextVAE, example_keys, measure
from jvae.metrics import Ratio, Sums
from jvae.objectives import Loss, Objective, batch_loss


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]  # optimizer steps done


class StepKeys(NamedTuple):
    """Random keys of one step, split once by use."""

    latent: Key[Array, ""]
    drop: Key[Array, ""]
    noise: Key[Array, ""]

    @classmethod
    def at(cls, base: Key[Array, ""], step: Int[Array, ""]) -> "StepKeys":
        """The keys of a step: a function of the run's base key and the step alone, so a resumed run
        repeats them.
        """
        return cls(*jax.random.split(jax.random.fold_in(base, step), len(cls._fields)))


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))


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
    *,
    noise: Callable[[Key[Array, "e"], Batch], Batch] | None = None,
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]:
    """step(state, batch, base_key) -> (state, sums): one optimizer update.

    Args:
      noise: (key_e, batch) -> batch, what the encoder reads in training alone; a key per example.

    The sums stay on the device, so the host loop waits for nothing between log lines. `finite`
    counts the steps whose loss and gradient norm were finite; an update that is not is skipped, so
    the state stays usable when the host stops the run.
    """

    def train_step(state: TrainState, batch: Batch, base: Key[Array, ""]):
        keys = StepKeys.at(base, state.step)
        weight = beta(state.step)
        if noise is not None:
            batch = noise(example_keys(keys.noise, batch.id_e), batch)

        def loss_fn(params: Params):
            terms = measure(model, params, batch, keys.latent, keys.drop)
            value, loss = batch_loss(objective, terms, weight)
            return value, _sums(loss, terms, batch)

        (value, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        params = jax.tree.map(keep, params, state.params)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        one = jnp.ones(())
        sums |= {
            "finite": Ratio(finite.astype(jnp.float32), one),
            "grad_norm": Ratio(norm, one),
            "beta": Ratio(jnp.asarray(weight, jnp.float32), one),
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
        return _sums(batch_loss(objective, terms, beta)[1], terms, batch)

    return valid_step
