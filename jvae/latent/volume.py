"""Log-determinant of a short run's Jacobian, and step sizes that are learned with it.

For fixed noise the chain is a map of z_0. If that map is one-to-one,
log q(z_K | x) = log p(z_0) - log |det dz_K / dz_0|. Noise, Jacobian and end point must come from
the same run. Sources: Nijkamp et al. 2020, arXiv 1912.01909, for the principle of learned step
sizes; the released code of Pang et al. 2021 for the estimator.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Generator, Params, Prior, example_keys, mean_valid
from jvae.latent import langevin, short_run
from jvae.latent.short_run import ChainConfig

Map = Callable[[Float[Array, "e g z"]], Float[Array, "e g z"]]


class ChainVolume(NamedTuple):
    """End points of one chain per example, with the log-determinants of their Jacobians."""

    start_egz: Float[Array, "e g z"]
    end_egz: Float[Array, "e g z"]
    log_det_e: Float[Array, "e"]  # log |det d end / d start|, nats


def through(step: Map, z_egz: Float[Array, "e g z"]) -> tuple[Array, Float[Array, "e"]]:
    """step(z) and log |det d step / dz| of each example.

    Costs one forward-mode pass per latent dimension.

    Args:
      step: must move every example independently of the others.
    """
    examples, groups, width = z_egz.shape
    moved_egz, push = jax.linearize(step, z_egz)
    basis_ngz = jnp.eye(groups * width, dtype=z_egz.dtype).reshape(-1, groups, width)
    column_negz = jax.vmap(lambda one_gz: push(jnp.broadcast_to(one_gz[None], z_egz.shape)))(
        basis_ngz
    )
    jacobian_enn = jnp.moveaxis(column_negz.reshape(-1, examples, groups * width), 0, 2)
    return moved_egz, jnp.linalg.slogdet(jacobian_enn)[1]


def per_step(
    kernel_at: langevin.KernelAt,
    z_egz: Float[Array, "e g z"],
    steps: int,
    noise_at: langevin.NoiseAt,
) -> ChainVolume:
    """The determinant as the product over steps of det(I + s_k^2 / 2 * Hessian of the log joint).

    Each step needs one Hessian-vector product (forward over reverse) per dimension of z.
    """

    def body(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        kernel, noise_egz = kernel_at(k), noise_at(k)
        step = lambda z_egz: kernel.move(noise_egz, kernel.init(z_egz), k)  # noqa: E731
        moved_egz, log_det_e = through(step, carry[0])
        return (moved_egz, carry[1] + log_det_e), None

    nothing_e = jnp.zeros(z_egz.shape[0], z_egz.dtype)
    (end_egz, log_det_e), _ = jax.lax.scan(body, (z_egz, nothing_e), jnp.arange(steps))
    return ChainVolume(z_egz, end_egz, log_det_e)


def whole_map(
    kernel_at: langevin.KernelAt,
    z_egz: Float[Array, "e g z"],
    steps: int,
    noise_at: langevin.NoiseAt,
) -> ChainVolume:
    """Like `per_step`, from the Jacobian of the whole chain.

    It is worse conditioned and serves to check `per_step`.
    """
    chain = lambda z_egz: langevin.run(kernel_at, z_egz, steps, noise_at)[0]  # noqa: E731
    return ChainVolume(z_egz, *through(chain, z_egz))


def short_run_bound(
    gen: Generator, prior: Prior, cfg: ChainConfig
) -> Callable[[Params, Float[Array, "k"], Batch, Key[Array, ""]], Float[Array, ""]]:
    """Returns bound(params, raw_k, batch, key): mean log p(x, z_K) + log |det dz_K / dz_0|, nats.

    Up to a constant that does not depend on the step sizes softplus(raw_k), this is the ELBO of the
    short run, so raising it lowers KL(short run || posterior). The gradient with respect to the
    sizes flows through the chain.
    """

    def bound(params: Params, raw_k: Array, batch: Batch, key: Array) -> Float[Array, ""]:
        params = jax.lax.stop_gradient(params)
        cond = gen.condition(params, batch)
        ctx = gen.prepare(params, batch, cond=cond)
        target = short_run.log_joint(gen, prior, params, ctx, batch, cond)
        size_at = langevin.schedule(jax.nn.softplus(raw_k))
        kernel = langevin.langevin(target, step_size=size_at, temperature=cfg.temperature)
        key_e = example_keys(key, batch.id_e)
        z_egz = prior.sample(params, key_e, cond)
        noise_at = short_run.noise_of(key_e, z_egz.shape[1:])
        done = per_step(lambda k: kernel, z_egz, raw_k.shape[0], noise_at)
        return mean_valid(target(done.end_egz) + done.log_det_e, batch.valid_e)

    return bound


def learn_sizes(
    gen: Generator, prior: Prior, cfg: ChainConfig, *, updates: int = 50, lr: float = 1e-2
) -> Callable[
    [Params, Float[Array, "k"], Batch, Key[Array, ""]],
    tuple[Float[Array, "k"], Float[Array, "u"]],
]:
    """Returns learn(params, raw_k, batch, key) -> (raw_k, bound of each update in nats).

    Runs Adam on the raw sizes, with new starting points and noise in every update and a fixed
    generator. Costs `updates` * K * latent width Hessian-vector products and their gradients, so
    use a small batch, call it rarely, and compile it.
    """
    bound = short_run_bound(gen, prior, cfg)
    tx = optax.adam(lr)

    def learn(params: Params, raw_k: Array, batch: Batch, key: Key[Array, ""]):
        def body(carry: tuple[Array, Any], update: Array) -> tuple[tuple[Array, Any], Array]:
            raw_k, state = carry
            loss = lambda raw_k: -bound(params, raw_k, batch, jax.random.fold_in(key, update))  # noqa: E731
            value, grad_k = jax.value_and_grad(loss)(raw_k)
            change_k, state = tx.update(grad_k, state, raw_k)
            return (optax.apply_updates(raw_k, change_k), state), -value

        carry = (raw_k, tx.init(raw_k))
        (raw_k, _), bound_u = jax.lax.scan(body, carry, jnp.arange(updates))
        return raw_k, bound_u

    return learn
