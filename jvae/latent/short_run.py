"""Short-run inference: z is the end point of a few Langevin steps, for any generator.

Use the posterior from `attach` for training and the one from `fitted` for metrics. `attach` starts
chains at the prior; `refine` starts them at an amortised posterior. Source: Pang et al. 2021, arXiv
2106.02513, and its released code. There are two deviations: parameters get no gradient from the
chain, and each chain uses a single dropout mask. For the released behaviour, set `fresh_dropout`
here and `param_grad` of `jvae.latent.annealing.Annealing`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import (
    START_STREAM,
    Batch,
    Cond,
    Context,
    Generator,
    Params,
    Posterior,
    Prior,
    per_example,
)
from jvae.fields import Needs, setting
from jvae.latent import langevin
from jvae.latent.gaussian import DiagonalGaussian, Gaussian, log_density, noise, reparameterize
from jvae.latent.langevin import Kernel
from jvae.parallel.mesh import gathered

SCHEDULES = ("fixed_official", "constant", "learned")
FLOOR = 1e-4  # minimum variance of end points
WIDEN = 1.2  # scales the fitted standard deviation: importance weights need a wide proposal


@dataclass(frozen=True)
class ChainConfig:
    """Config of a short-run chain.

    steps: K; 0 returns the starting points themselves, draws from the prior.
    schedule: step sizes: "fixed_official" as published, "constant" for `step_size`, "learned" for
      the parameters `posterior/size` (`jvae.latent.volume` learns them).
    temperature: scale of the noise.
    fresh_dropout: new dropout masks in every step (released code) instead of one per chain.
    chains: number of end points that `fitted` uses, even.
    chunk: how many of these chains run together.
    """

    steps: int = setting(
        20, low=0, high=100_000, help="Steps K per chain; 0: draws from the prior."
    )
    schedule: str = setting("fixed_official", choices=SCHEDULES, help="Schedule of the step sizes.")
    step_size: float = setting(
        0.4,
        above=0.0,
        high=1e6,
        help="The step size.",
        needs=Needs(lambda c: c.schedule == "constant", "the schedule is not constant"),
    )
    temperature: float = setting(0.2, low=0.0, high=1e6, help="Scale of the noise.")
    fresh_dropout: bool = setting(
        False, help="Draw dropout masks in every step, as released, instead of once per chain."
    )
    chains: int = setting(
        32, low=4, high=100_000, help="End points per fitted Gaussian, an even number."
    )
    chunk: int = setting(8, low=1, high=100_000, help="Number of chains that run together.")

    def __post_init__(self) -> None:
        if self.chains < 4 or self.chains % 2:
            raise ValueError(
                f"chains is {self.chains}; expected an even number from 4, for two sets"
            )


def initial_sizes(cfg: ChainConfig) -> Float[np.ndarray, "k"]:
    """Step sizes of the schedule; a learned schedule starts from the published ones."""
    if cfg.schedule == "constant":
        return np.full(cfg.steps, cfg.step_size, np.float32)
    return langevin.official_sizes(cfg.steps)


def init_sizes(cfg: ChainConfig) -> dict[str, Any]:
    """Parameters of a learned schedule, stored under `posterior`; {} for other schedules."""
    if cfg.schedule != "learned":
        return {}
    return {"size": jnp.asarray(langevin.raw_sizes(initial_sizes(cfg)))}


def sizes(cfg: ChainConfig, params: Params) -> Float[Array, "k"]:
    """Step sizes of the schedule, read from the parameters if they are learned."""
    if cfg.schedule != "learned":
        return jnp.asarray(initial_sizes(cfg))
    return jax.nn.softplus(params["posterior"]["size"][: cfg.steps])


def log_joint(
    gen: Generator,
    prior: Prior,
    params: Params,
    ctx: Context,
    batch: Batch,
    cond: Cond = None,
    prior_weight: Array | float = 1.0,
) -> langevin.LogJoint:
    """Returns the function z -> log p(x | z) + prior_weight * log p(z), per example."""

    def joint(z_egz: Float[Array, "e g z"]) -> Float[Array, "e"]:
        nats_e = per_example(gen.log_lik(params, ctx, z_egz), batch)
        return nats_e + prior_weight * prior.log_prob(params, z_egz, cond)

    return joint


class Chain(NamedTuple):
    """A chain ready to run on one batch, with parameters held constant.

    start: draws a starting point per example.
    """

    start: Callable[[Key[Array, "e"]], Float[Array, "e g z"]]
    kernel_at: langevin.KernelAt
    steps: int

    def end(
        self, key_e: Key[Array, "e"], *, path: bool = False
    ) -> tuple[Float[Array, "e g z"], Float[Array, "k e g z"] | None]:
        """Runs from a fresh start; no gradient flows through the end point or the path."""
        z_egz = self.start(key_e)
        noise_at = noise_of(key_e, z_egz.shape[1:])
        return jax.lax.stop_gradient(
            langevin.run(self.kernel_at, z_egz, self.steps, noise_at, path=path)
        )


def noise_of(key_e: Key[Array, "e"], shape: tuple[int, ...]) -> langevin.NoiseAt:
    """Returns the function k -> noise of step k, for chains with these keys."""
    return lambda k: noise(langevin.step_keys(key_e, k), shape)


def prepare(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    params: Params,
    batch: Batch,
    drop: Key[Array, ""] | None = None,
    *,
    cond: Cond = None,
    start: Posterior | None = None,
    temperature: Array | float | None = None,
    prior_weight: Array | float = 1.0,
    key_e: Key[Array, "e"] | None = None,
) -> Chain:
    """Prepares the chain of a batch.

    Everything that does not depend on z is computed here, once. On several devices, parameters are
    replicated while chains run; rows stay sharded.

    Args:
      start: chains start at draws from this posterior; None for the prior.
      temperature: overrides the config's, for a schedule over training.
      prior_weight: weight of log p(z) in the target; below 1 only during chain annealing.
      key_e: keys for `start.encode`, in case `start` is itself a sampler.
    """
    params, cond = jax.lax.stop_gradient((gathered(params), cond))
    size_at = langevin.schedule(sizes(cfg, params)) if cfg.steps else lambda k: jnp.zeros(())
    heat = cfg.temperature if temperature is None else temperature

    def kernel_of(ctx: Context) -> Kernel:
        target = log_joint(gen, prior, params, ctx, batch, cond, prior_weight)
        return langevin.langevin(target, step_size=size_at, temperature=heat)

    if cfg.fresh_dropout and drop is not None:

        def kernel_at(k: Array) -> Kernel:
            mask_key = jax.random.fold_in(drop, k)
            return kernel_of(gen.prepare(params, batch, mask_key, cond=cond))

    else:
        kernel = kernel_of(gen.prepare(params, batch, drop, cond=cond))

        def kernel_at(k: Array) -> Kernel:
            del k
            return kernel

    post = None if start is None else start.encode(params, batch, drop, cond=cond, key_e=key_e)

    def begin(key_e: Key[Array, "e"]) -> Float[Array, "e g z"]:
        key_e = langevin.step_keys(key_e, START_STREAM)
        if start is None:
            return prior.sample(params, key_e, cond)
        return start.sample(params, post, key_e[None])[0]

    return Chain(begin, kernel_at, cfg.steps)


def attach(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    *,
    start: Posterior | None = None,
    temperature: Array | float | None = None,
    prior_weight: Array | float = 1.0,
) -> Posterior:
    """A posterior that runs the chain; `post` is the end point, and every sample equals it.

    It has no density. Its KL is 0 by definition, since the loss has no KL term. See `prepare` for
    the arguments.
    """

    def encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Array:
        assert key_e is not None  # the contract: samplers are given one key per example
        chain = prepare(
            gen,
            prior,
            cfg,
            params,
            batch,
            drop,
            cond=cond,
            start=start,
            temperature=temperature,
            prior_weight=prior_weight,
            key_e=key_e,
        )
        return chain.end(key_e)[0]

    def sample(params: Params, post: Array, key_ke: Key[Array, "k e"]) -> Array:
        del params
        return jnp.broadcast_to(post[None], (key_ke.shape[0], *post.shape))

    return Posterior(encode, sample, None, lambda params, post: post, has_kl=False)


def refine(posterior: Posterior, gen: Generator, prior: Prior, cfg: ChainConfig) -> Posterior:
    """Short-run inference that starts at draws from an amortised posterior."""
    return attach(gen, prior, cfg, start=posterior)


class Fitted(NamedTuple):
    """A diagonal Gaussian fitted to the end points of two independent sets of chains."""

    mean_egz: Float[Array, "e g z"]
    log_var_egz: Float[Array, "e g z"]  # after widening
    mean_a_egz: Float[Array, "e g z"]  # mean of each set, to measure how well the sets agree
    mean_b_egz: Float[Array, "e g z"]


def _gaussian(post: Fitted) -> Gaussian:
    return Gaussian(post.mean_egz, post.log_var_egz)


@functools.cache
def from_prior(gen: Generator, prior: Prior, cfg: ChainConfig) -> Posterior:
    """`fitted` to draws from the prior in place of end points: the baseline of latent metrics.

    Equal arguments return the same object, to avoid recompilation.
    """
    return fitted(gen, prior, ChainConfig(steps=0, chains=cfg.chains, chunk=cfg.chunk))


def fitted(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    *,
    start: Posterior | None = None,
    widen: float = WIDEN,
) -> Posterior:
    """The posterior that metrics use: r(z) = N(m, widen^2 v), fitted to `cfg.chains` end points.

    Args:
      widen: 1 for the tightest single-draw bound, larger for a proposal with many draws.
    """

    def encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> Fitted:
        assert key_e is not None  # the contract: samplers are given one key per example
        chain = prepare(gen, prior, cfg, params, batch, drop, cond=cond, start=start, key_e=key_e)
        key_re = jax.vmap(lambda r: langevin.step_keys(key_e, r))(jnp.arange(cfg.chains))
        z_kegz = jax.lax.map(lambda key_e: chain.end(key_e)[0], key_re, batch_size=cfg.chunk)
        a_egz, b_egz = jnp.split(z_kegz, 2)
        var_egz = jnp.maximum(jnp.var(z_kegz, axis=0, ddof=1), FLOOR)
        return Fitted(
            mean_egz=jnp.mean(z_kegz, axis=0),
            log_var_egz=jnp.log(widen**2 * var_egz),
            mean_a_egz=jnp.mean(a_egz, axis=0),
            mean_b_egz=jnp.mean(b_egz, axis=0),
        )

    def sample(params: Params, post: Fitted, key_ke: Key[Array, "k e"]):
        del params
        return reparameterize(_gaussian(post), noise(key_ke, post.mean_egz.shape[1:]))

    return Posterior(
        encode=encode,
        sample=sample,
        log_prob=lambda params, post, z_egz: log_density(_gaussian(post), z_egz),
        mean=lambda params, post: post.mean_egz,
        form=DiagonalGaussian(),
    )
