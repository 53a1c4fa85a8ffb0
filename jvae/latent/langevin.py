"""Unadjusted Langevin dynamics over latents: kernel, step-size schedules and loop.

    kernel = langevin(log_joint, step_size=schedule, temperature=1.0)
    state = kernel.init(z_egz)
    state, info = kernel.step(key_e, state, k)

Every example moves along its own gradient: `log_joint` returns one number per example, which must
depend on that example's z only. The kernel differentiates with respect to z alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.latent.gaussian import noise

LogJoint = Callable[[Float[Array, "e g z"]], Float[Array, "e"]]
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]

# Source: `train_sri.py` of the released code of Pang et al. 2021. That list ends at 20 steps; here
# the last size repeats.
_OFFICIAL = (0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05)


class LangevinState(NamedTuple):
    """Position of the chain, with the log joint and its gradient there."""

    z_egz: Float[Array, "e g z"]
    log_joint_e: Float[Array, "e"]  # nats, at z
    score_egz: Float[Array, "e g z"]  # d log_joint / dz


class LangevinInfo(NamedTuple):
    """Diagnostics of one step."""

    noise_egz: Float[Array, "e g z"]  # before temperature and step size
    gain_e: Float[Array, "e"]  # change of the log joint, nats
    score_norm_e: Float[Array, "e"]  # norm of the gradient that the step followed


class Kernel(NamedTuple):
    """A Langevin kernel.

    step(key_e, state, k): takes step number k with fresh noise.
    move(noise_egz, state, k): returns the new z of that step for the given noise.
    """

    init: Callable[[Float[Array, "e g z"]], LangevinState]
    step: Callable[
        [Key[Array, "e"], LangevinState, Int[Array, ""] | int], tuple[LangevinState, LangevinInfo]
    ]
    move: Callable[
        [Float[Array, "e g z"], LangevinState, Int[Array, ""] | int], Float[Array, "e g z"]
    ]


KernelAt = Callable[[Int[Array, ""]], Kernel]  # k -> kernel; the target may change along a chain
NoiseAt = Callable[[Int[Array, ""]], Float[Array, "e g z"]]  # k -> noise


def langevin(
    log_joint: LogJoint, *, step_size: Schedule, temperature: Float[Array, ""] | float = 1.0
) -> Kernel:
    """z <- z + s_k^2 / 2 * d log_joint / dz + temperature * s_k * noise.

    Args:
      log_joint: log joint of any z per example, in nats, up to a constant.
      step_size: maps k to s_k.
      temperature: scale of the noise; 1 samples from the posterior in the limit of small steps, 0
        is gradient ascent on the log joint.
    """

    def init(z_egz: Float[Array, "e g z"]) -> LangevinState:
        log_joint_e, pull = jax.vjp(log_joint, z_egz)
        return LangevinState(z_egz, log_joint_e, pull(jnp.ones_like(log_joint_e))[0])

    def move(noise_egz: Array, state: LangevinState, k: Int[Array, ""] | int) -> Array:
        size = jnp.asarray(step_size(k), state.z_egz.dtype)
        drift_egz = 0.5 * jnp.square(size) * state.score_egz
        heat = jnp.asarray(temperature, state.z_egz.dtype) * size
        return state.z_egz + drift_egz + heat * noise_egz.astype(state.z_egz.dtype)

    def step(
        key_e: Key[Array, "e"], state: LangevinState, k: Int[Array, ""] | int
    ) -> tuple[LangevinState, LangevinInfo]:
        noise_egz = noise(key_e, state.z_egz.shape[1:])
        new = init(move(noise_egz, state, k))
        norm_e = jnp.sqrt(jnp.sum(jnp.square(state.score_egz), axis=(1, 2)))
        return new, LangevinInfo(noise_egz, new.log_joint_e - state.log_joint_e, norm_e)

    return Kernel(init, step, move)


def step_keys(key_e: Key[Array, "e"], k: Int[Array, ""] | int) -> Key[Array, "e"]:
    """The key of step k for each example's chain."""
    return jax.vmap(lambda key: jax.random.fold_in(key, k))(key_e)


def run(
    kernel_at: KernelAt,
    z_egz: Float[Array, "e g z"],
    steps: int,
    noise_at: NoiseAt,
    *,
    path: bool = False,
) -> tuple[Float[Array, "e g z"], Float[Array, "k e g z"] | None]:
    """Runs a chain of `steps` steps from z and returns its end; costs one gradient per step.

    Args:
      kernel_at: the kernel of step k; the target may change along the chain (fresh dropout masks).
      noise_at: the noise of step k, passed in so that estimators can share it.
      path: also return the earlier points of the chain, z_0 .. z_{steps-1}.
    """

    def body(z_egz: Array, k: Array) -> tuple[Array, Array | None]:
        kernel = kernel_at(k)
        new_egz = kernel.move(noise_at(k), kernel.init(z_egz), k)
        return new_egz, z_egz if path else None

    return jax.lax.scan(body, z_egz, jnp.arange(steps))


def official_sizes(steps: int) -> Float[np.ndarray, "k"]:
    """The published step sizes; the last one repeats for steps past the end of the list."""
    return np.array([_OFFICIAL[min(k, len(_OFFICIAL) - 1)] for k in range(steps)], np.float32)


def raw_sizes(size_k: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """Inverse softplus: the unconstrained parameters a_k of sizes log(1 + exp(a_k))."""
    return np.log(np.expm1(np.asarray(size_k, np.float64))).astype(np.float32)


def schedule(size_k: Float[Array, "k"] | Any) -> Schedule:
    """A schedule that looks up the step size by step number."""
    size_k = jnp.asarray(size_k)
    return lambda k: size_k[k]
