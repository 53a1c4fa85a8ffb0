"""A flow of coupling layers, with an exact density: splines whose shape half of the dimensions set.

It starts as the Gaussian with full covariance. Source: Durkan et al. 2019, arXiv 1906.04032.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Key

from jvae.fields import setting
from jvae.fitted import nets, spline
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.descent import Recipe, descend
from jvae.fitted.gaussian import moments
from jvae.latent.gaussian import LOG_2PI, noise

RIDGE = 1e-6


@dataclass(frozen=True)
class FlowOptions:
    """Options of the fitted prior `flow`."""

    layers: int = setting(6, low=1, high=1_000, help="Coupling layers.")
    width: int = setting(128, low=1, high=2**16, help="Of the network of a layer.")
    bins: int = setting(8, low=2, high=1_000, help="Of a spline.")
    steps: int = setting(2_000, low=1, high=10_000_000, help="Updates of the fit.")
    batch: int = setting(512, low=1, high=2**20, help="Latents of an update.")
    lr: float = setting(1e-3, above=0.0, high=10.0, help="Peak learning rate.")


def _orders(layers: int, width: int) -> np.ndarray:
    """Permutations in front of the layers; every second one moves what the one before it kept."""
    rng, orders = np.random.default_rng(0), []
    for layer in range(layers):
        swap = np.roll(np.arange(width), width // 2)
        orders.append(swap if layer % 2 else rng.permutation(width))
    return np.stack(orders)


def build(options: FlowOptions, shape: tuple[int, int], labels: int) -> Density:
    """The density of `FittedKind`."""
    width = shape[0] * shape[1]
    kept, moved = width // 2, width - width // 2
    order_ld = _orders(options.layers, width)
    back_ld = np.argsort(order_ld, axis=1)
    known = labels if labels > 1 else 0
    raw = spline.raw_size(options.bins)

    def init(key: Key[Array, ""]) -> Any:
        def layer(key: Key[Array, ""]) -> Any:
            first, second, last = jax.random.split(key, 3)
            return {
                "first": nets.affine(first, kept + known, options.width),
                "second": nets.affine(second, options.width, options.width),
                "last": nets.affine(last, options.width, moved * raw, zero=True),
            }

        return jax.vmap(layer)(jax.random.split(key, options.layers))

    def shapes(p: Any, kept_ed: Array, label_ec: Array) -> Float[Array, "e d r"]:
        h_ed = jnp.concatenate([kept_ed, label_ec], axis=1)
        h_ed = jax.nn.silu(nets.apply(p["first"], h_ed))
        h_ed = jax.nn.silu(nets.apply(p["second"], h_ed))
        return nets.apply(p["last"], h_ed).reshape(-1, moved, raw)

    def one_hot(label_e: Array) -> Float[Array, "e c"]:
        return jax.nn.one_hot(label_e, labels)[:, :known]

    def inward(layers: Any, x_ed: Array, label_ec: Array) -> tuple[Array, Array]:
        """(noise, log-determinant) of whitened latents."""

        def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], None]:
            (x_ed, nats_e), (p, order_d) = carry, inputs
            x_ed = x_ed[:, order_d]
            kept_ed = x_ed[:, :kept]
            moved_ed, slope_ed = spline.forward(x_ed[:, kept:], shapes(p, kept_ed, label_ec))
            x_ed = jnp.concatenate([kept_ed, moved_ed], axis=1)
            return (x_ed, nats_e + jnp.sum(slope_ed, axis=1)), None

        start = (x_ed, jnp.zeros(len(x_ed), x_ed.dtype))
        return jax.lax.scan(step, start, (layers, jnp.asarray(order_ld)))[0]

    def outward(layers: Any, x_ed: Array, label_ec: Array) -> Float[Array, "e d"]:
        """Whitened latents of noise."""

        def step(x_ed: Array, inputs: Any) -> tuple[Array, None]:
            p, back_d = inputs
            kept_ed = x_ed[:, :kept]
            moved_ed = spline.backward(x_ed[:, kept:], shapes(p, kept_ed, label_ec))
            return jnp.concatenate([kept_ed, moved_ed], axis=1)[:, back_d], None

        return jax.lax.scan(step, x_ed, (layers, jnp.asarray(back_ld)), reverse=True)[0]

    def nats(layers: Any, x_ed: Array, label_e: Array) -> Float[Array, "e"]:
        noise_ed, log_det_e = inward(layers, x_ed, one_hot(label_e))
        return log_det_e - 0.5 * jnp.sum(noise_ed**2 + LOG_2PI, axis=1)

    def loss(layers: Any, x_bgz: Array, label_b: Array, key: Key[Array, ""]) -> Array:
        del key
        return -jnp.mean(nats(layers, x_bgz[:, 0], label_b))

    def white(p: Any, u_ngz: Array) -> Float[Array, "n d"]:
        left_nd = u_ngz.reshape(-1, width) - p["mean_d"][None]
        return solve_triangular(p["factor_dd"], left_nd.T, lower=True).T

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> Any:
        base = moments(u_ngz.reshape(-1, width), jnp.zeros_like(label_n), 1, RIDGE)
        p = {"mean_d": base["mean_cd"][0], "factor_dd": base["factor_cdd"][0]}
        init_key, key = jax.random.split(key)
        recipe = Recipe(options.steps, options.batch, options.lr, 0.99)
        x_n1d = white(p, u_ngz)[:, None]
        return p | {"layers": descend(loss, jax.jit(init)(init_key), x_n1d, label_n, key, recipe)}

    def coloured(p: Any, noise_ed: Array, label_e: Array) -> Float[Array, "e g z"]:
        x_ed = outward(p["layers"], noise_ed, one_hot(label_e))
        return (p["mean_d"][None] + x_ed @ p["factor_dd"].T).reshape(-1, *shape)

    def sample(p: Any, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        return coloured(p, noise(key_e, (width,)), label_e)

    def every(u_egz: Array, label: Array) -> Array:
        return jnp.full(u_egz.shape[:1], label)

    def log_prob(p: Any, u_egz: Array, label: Array) -> Float[Array, "e"]:
        log_det = jnp.sum(jnp.log(jnp.diagonal(p["factor_dd"])))
        return nats(p["layers"], white(p, u_egz), every(u_egz, label)) - log_det

    def to_noise(p: Any, u_egz: Array, label: Array) -> Float[Array, "e g z"]:
        label_ec = one_hot(every(u_egz, label))
        return inward(p["layers"], white(p, u_egz), label_ec)[0].reshape(u_egz.shape)

    def from_noise(p: Any, noise_egz: Array, label: Array) -> Float[Array, "e g z"]:
        return coloured(p, noise_egz.reshape(-1, width), every(noise_egz, label))

    return Density(fit, sample, log_prob, to_noise, from_noise)


FITTED.register("flow")(FittedKind(FlowOptions, build))
