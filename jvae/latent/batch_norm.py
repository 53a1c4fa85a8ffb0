"""Posterior `bn`: a diagonal Gaussian with batch-normalised means, which puts a floor on its KL.

Over a batch, every dimension of the mean has variance gamma^2. The batch average of the KL to
N(0, I) is therefore at least gamma^2 / 2 per dimension for any encoder. gamma is computed from the
requested minimum KL. Source: Zhu et al. 2020, arXiv 2004.12585.

In training (when a dropout key is given) the statistics are computed over the valid examples of the
global batch. Otherwise they are running averages. These are stored with the parameters but receive
no gradient; each update refreshes them with an extra encoder pass over its batch, without dropout.
Gradient accumulation would compute statistics over parts of a batch, so `train.accumulate` must
be 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.latent.densities import (
    POSTERIORS,
    Density,
    GaussianOptions,
    Head,
    PosteriorKind,
    gaussian,
)
from jvae.latent.gaussian import Gaussian

EPS = 1e-5  # added to variances
KEPT = 0.99  # decay of the running statistics per update


@dataclass(frozen=True)
class BnOptions:
    """Options of the posterior `bn`."""

    min_kl: float = setting(
        5.0, above=0.0, high=1e6, help="Minimum average KL to N(0, I), nats per text."
    )
    log_var_shift: float = setting(0.0, low=-50.0, high=50.0, help="Added to log-variances.")


def bn(options: BnOptions, head: Head, shape: tuple[int, int]) -> Density:
    """The density `gaussian` with batch-normalised means."""
    plain = gaussian(GaussianOptions(options.log_var_shift), head, shape)
    gamma = math.sqrt(2 * options.min_kl / (shape[0] * shape[1]))

    def init(key: Key[Array, "..."]) -> dict[str, Any]:
        def boxed(value: float) -> Any:
            return nn.LogicallyPartitioned(jnp.full(shape, value), (None, "latent"))

        running = {"mean": boxed(0.0), "var": boxed(1.0)}
        return plain.init(key) | {"bias": boxed(0.0), "running": running}

    def normed(params: Params, q: Gaussian, mean_gz: Array, var_gz: Array) -> Gaussian:
        scaled_egz = (q.mean_egz - mean_gz[None]) * jax.lax.rsqrt(var_gz + EPS)[None]
        return Gaussian(gamma * scaled_egz + params["bias"][None], q.log_var_egz)

    def read(params: Params, h_egd: Array) -> Gaussian:
        running = jax.lax.stop_gradient(params["running"])
        return normed(params, plain.read(params, h_egd), running["mean"], running["var"])

    def read_together(params: Params, h_egd: Array, valid_e: Bool[Array, "e"]) -> Gaussian:
        q = plain.read(params, h_egd)
        return normed(params, q, *moments(q.mean_egz, valid_e))

    def track(params: Params, h_egd: Array, valid_e: Bool[Array, "e"]) -> Any:
        mean_gz, var_gz = moments(plain.read(params, h_egd).mean_egz, valid_e)
        batch = {"mean": mean_gz, "var": var_gz}
        # A batch needs at least two texts to estimate a variance.
        share = jnp.where(jnp.sum(valid_e) > 1, 1 - KEPT, 0.0)

        def moved(old: Array, new: Array) -> Array:
            return (old + share * (new - old)).astype(old.dtype)

        return params | {"running": jax.tree.map(moved, params["running"], batch)}

    return plain._replace(init=init, read=read, read_together=read_together, track=track)


def moments(
    x_egz: Float[Array, "e g z"], valid_e: Bool[Array, "e"]
) -> tuple[Float[Array, "g z"], Float[Array, "g z"]]:
    """Mean and variance over the valid examples of the global batch."""
    weight_e11 = valid_e.astype(x_egz.dtype)[:, None, None]
    count = jnp.maximum(jnp.sum(weight_e11), 1.0)
    mean_gz = jnp.sum(weight_e11 * x_egz, axis=0) / count
    var_gz = jnp.sum(weight_e11 * jnp.square(x_egz - mean_gz[None]), axis=0) / count
    return mean_gz, var_gz


POSTERIORS.register("bn")(PosteriorKind(BnOptions, bn))
