"""Gradient-based fitting: Adam on random batches of latents, in one compiled loop."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jvae.api import Params
from jvae.data.progress import Progress
from jvae.parallel.mesh import kept_rows

BLOCK = 250  # updates per call of the compiled loop
WARM_UP = 0.05  # share of the updates used for learning-rate warm-up
CLIP = 1.0  # maximum gradient norm
QUIET_S = 5.0

Loss = Callable[[Params, Array, Array, Array], Array]  # (params, u_bgz, label_b, key) -> nats


class Recipe(NamedTuple):
    """Optimiser settings; `average` is the decay of the parameter average, `momentum` Adam's b1."""

    steps: int
    batch: int
    lr: float
    average: float
    momentum: float = 0.9


class _State(NamedTuple):
    params: Params
    average: Params
    optimizer: optax.OptState


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    rise = max(int(WARM_UP * recipe.steps), 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.lr, rise, max(recipe.steps, rise + 1), 0.01 * recipe.lr
    )
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate, b1=recipe.momentum))


@functools.partial(jax.jit, static_argnames=("loss", "recipe", "steps"), donate_argnames=("state",))
def _advance(
    loss: Loss,
    recipe: Recipe,
    steps: int,
    state: _State,
    u_ngz: Float[Array, "n g z"],
    label_n: Int[Array, "n"],
    key: Key[Array, ""],
    begin: Int[Array, ""],
) -> _State:
    optimizer = _optimizer(recipe)

    def update(state: _State, number: Array) -> tuple[_State, None]:
        place_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
        place_b = jax.random.randint(place_key, (recipe.batch,), 0, len(u_ngz))
        u_bgz, label_b = kept_rows(u_ngz[place_b]), kept_rows(label_n[place_b])
        gradient = jax.grad(loss)(state.params, u_bgz, label_b, loss_key)
        change, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, change)
        # A smaller decay at first quickly removes the initial parameters from the average.
        decay = jnp.minimum(recipe.average, (1.0 + number) / (10.0 + number))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
        return _State(params, average, optimizer_state), None

    return jax.lax.scan(update, state, begin + jnp.arange(steps))[0]


def descend(
    loss: Loss,
    params: Params,
    u_ngz: Float[Array, "n g z"],
    label_n: Int[Array, "n"],
    key: Key[Array, ""],
    recipe: Recipe,
) -> Params:
    """Minimises a loss and returns the moving average of the parameters.

    Args:
      loss: loss of a batch; reusing the same object avoids recompilation.
    """
    state = _State(params, jax.tree.map(jnp.copy, params), _optimizer(recipe).init(params))
    with Progress("fitting the prior", recipe.steps, quiet_s=QUIET_S) as progress:
        for begin in range(0, recipe.steps, BLOCK):
            steps = min(BLOCK, recipe.steps - begin)
            at = jnp.asarray(begin)
            state = _advance(loss, recipe, steps, state, u_ngz, label_n, key, at)
            jax.block_until_ready(state.average)
            progress.add(steps)
    return state.average
