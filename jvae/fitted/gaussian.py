"""A Gaussian with full covariance for each label."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.latent.gaussian import LOG_2PI, noise


@dataclass(frozen=True)
class GaussianOptions:
    """Options of the fitted prior `gaussian`."""

    ridge: float = setting(
        1e-6, above=0.0, high=1.0, help="Added to variances, which are 1 on average."
    )


@partial(jax.jit, static_argnames=("labels", "ridge"))
def moments(
    u_nd: Float[Array, "n d"], label_n: Int[Array, "n"], labels: int, ridge: float
) -> dict[str, Array]:
    """Mean and Cholesky factor of the covariance of each label's latents.

    A label's covariance is shrunk towards the pooled within-label covariance with the weight of D
    latents, so that it is not singular for a rare label.
    """
    width = u_nd.shape[1]

    def of(label: Array) -> tuple[Array, Array, Array]:
        weight_n = (label_n == label).astype(u_nd.dtype)
        count = jnp.sum(weight_n)
        mean_d = weight_n @ u_nd / count
        left_nd = (u_nd - mean_d[None]) * weight_n[:, None]
        return count, mean_d, left_nd.T @ left_nd

    count_c, mean_cd, scatter_cdd = jax.lax.map(of, jnp.arange(labels))
    pooled_dd = jnp.sum(scatter_cdd, axis=0) / jnp.sum(count_c)
    covariance_cdd = (scatter_cdd + width * pooled_dd[None]) / (count_c + width)[:, None, None]
    covariance_cdd = covariance_cdd + ridge * jnp.eye(width)[None]
    return {"mean_cd": mean_cd, "factor_cdd": jnp.linalg.cholesky(covariance_cdd)}


def build(options: GaussianOptions, shape: tuple[int, int], labels: int) -> Density:
    """Builds the density; see `FittedKind`."""
    width = shape[0] * shape[1]

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> dict[str, Array]:
        del key
        return moments(u_ngz.reshape(-1, width), label_n, labels, options.ridge)

    def sample(p: Params, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        noise_ed = noise(key_e, (width,))
        if labels == 1:
            u_ed = p["mean_cd"] + noise_ed @ p["factor_cdd"][0].T
        else:
            u_ed = p["mean_cd"][label_e] + jnp.einsum(
                "ed,ekd->ek", noise_ed, p["factor_cdd"][label_e]
            )
        return u_ed.reshape(-1, *shape)

    def to_noise(p: Params, u_egz: Array, label: Array) -> Float[Array, "e g z"]:
        left_ed = u_egz.reshape(-1, width) - p["mean_cd"][label][None]
        noise_de = solve_triangular(p["factor_cdd"][label], left_ed.T, lower=True)
        return noise_de.T.reshape(u_egz.shape)

    def from_noise(p: Params, noise_egz: Array, label: Array) -> Float[Array, "e g z"]:
        noise_ed = noise_egz.reshape(-1, width)
        u_ed = p["mean_cd"][label][None] + noise_ed @ p["factor_cdd"][label].T
        return u_ed.reshape(noise_egz.shape)

    def log_prob(p: Params, u_egz: Array, label: Array) -> Float[Array, "e"]:
        noise_egz = to_noise(p, u_egz, label)
        log_det = jnp.sum(jnp.log(jnp.diagonal(p["factor_cdd"][label])))
        return -0.5 * jnp.sum(noise_egz**2 + LOG_2PI, axis=(1, 2)) - log_det

    return Density(fit, sample, log_prob, to_noise, from_noise)


FITTED.register("gaussian")(FittedKind(GaussianOptions, build))
