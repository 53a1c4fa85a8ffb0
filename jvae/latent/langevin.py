"""Unadjusted Langevin dynamics over latents: a kernel of pure functions, its schedules, its loop.

    kernel = langevin(log_joint, step_size=schedule, temperature=1.0)
    state = kernel.init(z_egz)
    state, info = kernel.step(key_e, state, k)

Every example moves by its own gradient: `log_joint` gives one number per example, and no example
reads another's z. The kernel differentiates in z alone.
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

# Source: `train_sri.py` of the released code of Pang et al. 2021; it stops at 20 steps, here the
# last size goes on.
_OFFICIAL = (0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05)


class LangevinState(NamedTuple):
    """What a step needs of where the chain is."""

    z_egz: Float[Array, "e g z"]
    log_joint_e: Float[Array, "e"]  # nats, at z
    score_egz: Float[Array, "e g z"]  # d log_joint / dz


class LangevinInfo(NamedTuple):
    """What a step did."""

    noise_egz: Float[Array, "e g z"]  # before temperature and step size
    gain_e: Float[Array, "e"]  # change of the log joint, nats
    score_norm_e: Float[Array, "e"]  # of the gradient that moved the chain


class Kernel(NamedTuple):
    """A Langevin chain.

    step(key_e, state, k): step number k, with fresh noise.
    move(noise_egz, state, k): where that step goes with this noise.
    """

    init: Callable[[Float[Array, "e g z"]], LangevinState]
    step: Callable[
        [Key[Array, "e"], LangevinState, Int[Array, ""] | int], tuple[LangevinState, LangevinInfo]
    ]
    move: Callable[
        [Float[Array, "e g z"], LangevinState, Int[Array, ""] | int], Float[Array, "e g z"]
    ]


KernelAt = Callable[[Int[Array, ""]], Kernel]  # of step k; the target may change along a chain
NoiseAt = Callable[[Int[Array, ""]], Float[Array, "e g z"]]  # of step k


def langevin(
    log_joint: LogJoint, *, step_size: Schedule, temperature: Float[Array, ""] | float = 1.0
) -> Kernel:
    """z <- z + s_k^2 / 2 * d log_joint / dz + temperature * s_k * noise.

    Args:
      log_joint: nats per example of any z, up to a constant.
      step_size: s_k of step k.
      temperature: scale of the noise; 1 samples from the posterior in the limit of small steps, 0
        climbs the log joint.
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
    """The keys of step k of the chains of these examples."""
    return jax.vmap(lambda key: jax.random.fold_in(key, k))(key_e)


def run(
    kernel_at: KernelAt,
    z_egz: Float[Array, "e g z"],
    steps: int,
    noise_at: NoiseAt,
    *,
    path: bool = False,
) -> tuple[Float[Array, "e g z"], Float[Array, "k e g z"] | None]:
    """The end of a chain of `steps` steps from z, at the price of one gradient per step.

    Args:
      kernel_at: the kernel of step k; the target may change along the chain (fresh dropout masks).
      noise_at: the noise of step k, so that estimators can share it.
      path: also give the points the chain left, z_0 .. z_{steps-1}.
    """

    def body(z_egz: Array, k: Array) -> tuple[Array, Array | None]:
        kernel = kernel_at(k)
        new_egz = kernel.move(noise_at(k), kernel.init(z_egz), k)
        return new_egz, z_egz if path else None

    return jax.lax.scan(body, z_egz, jnp.arange(steps))


def official_sizes(steps: int) -> Float[np.ndarray, "k"]:
    """The published step sizes; the last of them for every step past the list."""
    return np.array([_OFFICIAL[min(k, len(_OFFICIAL) - 1)] for k in range(steps)], np.float32)


def raw_sizes(size_k: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """The inverse of softplus: the free parameters a_k of sizes log(1 + exp(a_k))."""
    return np.log(np.expm1(np.asarray(size_k, np.float64))).astype(np.float32)


def schedule(size_k: Float[Array, "k"] | Any) -> Schedule:
    """Step sizes looked up by step."""
    size_k = jnp.asarray(size_k)
    return lambda k: size_k[k]
