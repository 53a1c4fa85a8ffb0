"""AdamW with learning-rate schedules, clipping by global norm, and weight decay by parameter path.

Config section:

    lr              peak learning rate
    schedule        constant | linear | cosine | rsqrt, see `learning_rate`
    warmup_steps    linear warm-up from 0
    b1, b2, eps     decay rates of the moments; eps is added outside the root
    eps_first       whether to add eps before the bias correction (as in transformers' old AdamW),
                    makes it up to 30 times larger in the first updates
    weight_decay    decoupled, scaled by the learning rate
    no_decay        patterns; parameters whose path matches one (re.search) are not decayed
    clip            largest global norm of the gradient; None: no clipping
    first_update    0, or 1: the first update already uses the rate of step 1 (released AdaVAE)
    trainable       rules of `jvae.training.freezing`; empty: everything trains
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jvae.api import Params
from jvae.errors import ConfigError
from jvae.training import freezing
from jvae.tree import map_named, named_leaves

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")


def learning_rate(cfg: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0: the first update of a warm-up has rate 0.

    After `warmup_steps`: `constant` stays constant; `linear` decays to 0 at `total_steps`; `cosine`
    decays to 0 there along half a period; `rsqrt` decays as sqrt(warmup_steps / step), without end.

    Source: `linear` is get_linear_schedule_with_warmup of Hugging Face transformers.
    """
    peak, warmup, kind = float(cfg["lr"]), int(cfg["warmup_steps"]), cfg["schedule"]
    ahead = int(cfg.get("first_update", 0))

    def schedule(step: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.int32) + ahead
        left = jnp.clip((total_steps - step) / max(1, total_steps - warmup), 0.0, 1.0)
        after = {
            "constant": lambda: jnp.ones_like(left),
            "linear": lambda: left,
            "cosine": lambda: 0.5 * (1.0 - jnp.cos(jnp.pi * left)),
            "rsqrt": lambda: jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup))),
        }[kind]()
        return jnp.asarray(peak * jnp.where(step < warmup, step / max(1, warmup), after))

    return schedule


def decay_mask(params: Params, patterns: Sequence[str]) -> Any:
    """True at the leaves to decay: those whose path matches none of the patterns.

    Raises: ConfigError for a pattern that matches no parameter; otherwise a parameter meant to be
      exempt would be decayed.
    """
    compiled = [re.compile(pattern) for pattern in patterns]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in named_leaves(params)):
            examples = ", ".join(list(named_leaves(params))[:3])
            raise ConfigError(
                f"config.optim.no_decay: {pattern!r} matches no parameter (paths: {examples} ...)"
            )
    return map_named(lambda name, _: not any(pattern.search(name) for pattern in compiled), params)


class AdamState(NamedTuple):
    """Number of updates and both moments."""

    count: Int[Array, ""]  # pyright: ignore  as optax names it
    mu: Params
    nu: Params


def scale_by_adam(
    b1: float, b2: float, eps: float, from_steps: Any, eps_first: bool = False
) -> optax.GradientTransformation:
    """Adam with a bias correction that starts, for each parameter, when it begins to train.

    Args:
      from_steps: a tree like the parameters. Until its step a parameter must get zero gradients.
      eps_first: whether to add eps before the bias correction.
    Source: Kingma & Ba 2015.
    """

    def init(params: Params) -> AdamState:
        zeros = optax.tree.zeros_like
        return AdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(
        updates: optax.Updates, state: AdamState, params: Params = None
    ) -> tuple[optax.Updates, AdamState]:
        del params
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, updates, state.nu)

        def direction(m: Array, v: Array, first: int) -> Array:
            # Before its first step m is zero, and so is the update direction.
            count = jnp.maximum(state.count + 1 - first, 1).astype(m.dtype)
            seen = 1 - b2**count
            added = eps / jnp.sqrt(seen) if eps_first else eps
            return m / (1 - b1**count) / (jnp.sqrt(v / seen) + added)

        return jax.tree.map(direction, mu, nu, from_steps), AdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def only_active(from_steps: Any) -> optax.GradientTransformation:
    """Zeroes the updates of parameters that do not train yet."""

    def update(
        updates: optax.Updates, state: Int[Array, ""], params: Params = None
    ) -> tuple[optax.Updates, Int[Array, ""]]:
        del params
        return freezing.active(from_steps, updates, state), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def build(
    cfg: Mapping[str, Any], params: Params, total_steps: int, from_steps: Any = None
) -> optax.GradientTransformation:
    """Builds the optimizer of a config section for a tree of parameters, which may be abstract.

    Args:
      from_steps: a tree like `params` with the step from which each one trains; None: all from the
        start. Until then a parameter, its moments and its bias correction are unchanged, and the
        clipping norm excludes it.
    Raises: ConfigError.
    Source: Loshchilov & Hutter 2019. Deviation from transformers' old AdamW: decay uses the
      parameter before the update, which differs by less than 1e-3 of it; for eps see `eps_first`.
    """
    decay = float(cfg["weight_decay"])
    clip = cfg["clip"]
    if from_steps is None:
        from_steps = jax.tree.map(lambda _: 0, params)
    late = any(jax.tree.leaves(from_steps))
    parts = [
        only_active(from_steps) if late else None,
        None if clip is None else optax.clip_by_global_norm(clip),
        scale_by_adam(cfg["b1"], cfg["b2"], cfg["eps"], from_steps, cfg.get("eps_first", False)),
    ]
    if decay:
        parts.append(optax.add_decayed_weights(decay, decay_mask(params, cfg["no_decay"])))
        # A parameter that does not train yet is not decayed either.
        parts.append(only_active(from_steps) if late else None)
    parts.append(optax.scale_by_learning_rate(learning_rate(cfg, total_steps)))
    return optax.chain(*(part for part in parts if part is not None))
