"""Schedules of the KL weight: functions of the step that can be traced inside jit.

Every schedule maps a step, counted from 0, to a float32 scalar, and stays at `stop` after `n_iter`
steps.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvae.errors import ConfigError

_NEVER = 2**31 - 1  # a step that no run reaches

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def constant(stop: float) -> Schedule:
    """The constant `stop`."""
    return lambda step: jnp.full(jnp.shape(step), stop, jnp.float32)


def linear(n_iter: int, start: float, stop: float) -> Schedule:
    """From `start` at step 0 to `stop` at step `n_iter`."""

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        done = jnp.clip(jnp.asarray(step), 0, n_iter) / n_iter
        return jnp.asarray(start + (stop - start) * done, jnp.float32)

    return schedule


def cyclic_zero_linear(
    n_iter: int, start: float, stop: float, n_cycle: int, ratio_increase: float, ratio_zero: float
) -> Schedule:
    """Repeats a cycle: `start` for `ratio_zero` of it, a line for `ratio_increase`, then `stop`.

    The line's first value is `start` itself, so a cycle has one more step at `start` than the ratio
    implies. A cycle begins at its real-valued start rounded down. A line that does not fit in its
    cycle is cut off by the next one.

    Raises: ConfigError if `start` exceeds `stop`.
    Source: Li et al. 2020 (Optimus), section 4.3 and the released `frange_cycle_zero_linear`.
    """
    _require(start <= stop, f"start = {start} and stop = {stop}, expected start <= stop")
    period = n_iter / n_cycle
    begins = np.array([int(cycle * period) for cycle in range(n_cycle)], np.int32)
    flat = math.ceil(period * ratio_zero)
    rise = (stop - start) / (period * ratio_increase)

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.int32)
        cycle = jnp.searchsorted(jnp.asarray(begins), step, side="right") - 1
        # Keep integers as long as possible: float32 steps are inexact above 2**24.
        climbed = jnp.maximum(step - jnp.asarray(begins)[cycle] - flat, 0)
        beta = jnp.minimum(start + rise * climbed.astype(jnp.float32), stop)
        return jnp.where(step < n_iter, beta, stop).astype(jnp.float32)

    return schedule


def cyclic_linear(
    n_iter: int, start: float, stop: float, n_cycle: int, ratio_increase: float
) -> Schedule:
    """Repeats a cycle: a line from `start` to `stop` for `ratio_increase` of it, then `stop`.

    Raises: ConfigError if `start` exceeds `stop`.
    Source: Fu et al. 2019 and the released Optimus `frange_cycle_linear`.
    """
    return cyclic_zero_linear(n_iter, start, stop, n_cycle, ratio_increase, ratio_zero=0.0)


KINDS: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cyclic_linear": cyclic_linear,
    "cyclic_zero_linear": cyclic_zero_linear,
}


def build(cfg: Mapping[str, object], total_steps: int) -> Schedule:
    """Builds the schedule of a config section: `kind` and the arguments of that function, by name.

    A section may also contain arguments of other kinds, so that a single flag can switch the kind.
    If `n_iter` is absent or None, it is `total_steps`.

    Raises: ConfigError for an unknown argument, a missing one, or a `start` above `stop`.
    """
    settings = {name: value for name, value in dict(cfg).items() if name != "kind"}
    kind = str(cfg.get("kind"))
    arguments = {name: list(inspect.signature(make).parameters) for name, make in KINDS.items()}
    for name in settings:
        keys = {argument for names in arguments.values() for argument in names}
        _require(name in keys, f"unknown key {name!r}, known: {', '.join(sorted(keys))}")
    if settings.get("n_iter") is None:
        settings["n_iter"] = total_steps
    for name in arguments[kind]:
        _require(settings.get(name) is not None, f"kind {kind} needs the key {name!r}")
    return KINDS[kind](**{name: settings[name] for name in arguments[kind]})


def final_from(cfg: Mapping[str, object], total_steps: int) -> int:
    """The first step from which the schedule of a config section stays at its last value;
    `total_steps` if it gets there later.

    Raises: ConfigError as in `build`.
    """
    return _final_from(tuple(sorted(dict(cfg).items())), total_steps)


@functools.lru_cache(maxsize=256)  # called whenever the phases of a run are resolved
def _final_from(items: tuple[tuple[str, object], ...], total_steps: int) -> int:
    schedule = build(dict(items), total_steps)
    step_t = np.append(np.arange(total_steps, dtype=np.int32), np.int32(_NEVER))
    *value_t, last = np.asarray(jax.jit(schedule)(step_t))  # one program, not one per operation
    changing = np.flatnonzero(value_t != last)
    return int(changing[-1]) + 1 if len(changing) else 0


def step_of(value: int | str, total_steps: int, where: str) -> int:
    """A step of a run: a number, or a share of the run as text, such as "1/6", rounded down.

    Raises: ConfigError, starting with `where`, for other values or a step outside the run.
    """
    try:
        step = int(Fraction(value) * total_steps) if isinstance(value, str) else int(value)
    except (ValueError, TypeError, ZeroDivisionError):
        raise ConfigError(
            f"{where}: from_step {value!r}; expected a step, or a share such as '1/6'"
        ) from None
    if not 0 <= step <= total_steps:
        raise ConfigError(f"{where}: from_step {value!r}; the run has {total_steps} steps")
    return step


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"schedule: {message}")
