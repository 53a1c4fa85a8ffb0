"""Spline coupling layers between latents and noise.

In each layer, half of the dimensions determine the splines that transform the other half. At
initialisation the layers only permute dimensions. Source: Durkan et al. 2019, arXiv 1906.04032.

Axis letters are those of `jvae.api`, plus C for the features of a condition, such as a label.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.latent import nets, spline
from jvae.latent.gaussian import LOG_2PI


class Coupling(NamedTuple):
    """Coupling layers over flat latents (E, D); the leading axis of the parameters is layers.

    layers: number of layers. width: hidden width of each layer's network. bins: bins per spline.
    size: D. condition: C, the size of the condition; 0 without one.
    """

    layers: int
    width: int
    bins: int
    size: int
    condition: int = 0

    @property
    def _kept(self) -> int:
        return self.size // 2

    @property
    def _orders(self) -> np.ndarray:
        """Permutation before each layer; odd layers transform what the layer before them kept."""
        rng, orders = np.random.default_rng(0), []
        for layer in range(self.layers):
            swap = np.roll(np.arange(self.size), self.size // 2)
            orders.append(swap if layer % 2 else rng.permutation(self.size))
        return np.stack(orders)

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters, as plain arrays without axis names."""
        moved, raw = self.size - self._kept, spline.raw_size(self.bins)

        def layer(key: Key[Array, ""]) -> Params:
            first, second, last = jax.random.split(key, 3)
            return {
                "first": nets.affine(first, self._kept + self.condition, self.width),
                "second": nets.affine(second, self.width, self.width),
                "last": nets.affine(last, self.width, moved * raw, zero=True),
            }

        return jax.vmap(layer)(jax.random.split(key, self.layers))

    def _shapes(self, p: Params, kept_ed: Array, given_ec: Array | None) -> Float[Array, "e d r"]:
        h_ed = kept_ed if given_ec is None else jnp.concatenate([kept_ed, given_ec], axis=1)
        h_ed = jax.nn.silu(nets.apply(p["first"], h_ed))
        h_ed = jax.nn.silu(nets.apply(p["second"], h_ed))
        return nets.apply(p["last"], h_ed).reshape(len(h_ed), -1, spline.raw_size(self.bins))

    def inward(
        self, layers: Any, x_ed: Float[Array, "e d"], given_ec: Array | None = None
    ) -> tuple[Float[Array, "e d"], Float[Array, "e"]]:
        """Maps latents to noise; also returns the log-determinant of the Jacobian, in nats."""
        kept = self._kept

        def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], None]:
            (x_ed, nats_e), (p, order_d) = carry, inputs
            x_ed = x_ed[:, order_d]
            kept_ed = x_ed[:, :kept]
            shapes = self._shapes(p, kept_ed, given_ec)
            moved_ed, slope_ed = spline.forward(x_ed[:, kept:], shapes)
            x_ed = jnp.concatenate([kept_ed, moved_ed], axis=1)
            return (x_ed, nats_e + jnp.sum(slope_ed, axis=1)), None

        start = (x_ed, jnp.zeros(len(x_ed), x_ed.dtype))
        return jax.lax.scan(step, start, (layers, jnp.asarray(self._orders)))[0]

    def outward(
        self, layers: Any, x_ed: Float[Array, "e d"], given_ec: Array | None = None
    ) -> Float[Array, "e d"]:
        """Maps noise to latents."""
        kept = self._kept

        def step(x_ed: Array, inputs: Any) -> tuple[Array, None]:
            p, back_d = inputs
            kept_ed = x_ed[:, :kept]
            moved_ed = spline.backward(x_ed[:, kept:], self._shapes(p, kept_ed, given_ec))
            return jnp.concatenate([kept_ed, moved_ed], axis=1)[:, back_d], None

        back_ld = jnp.asarray(np.argsort(self._orders, axis=1))
        return jax.lax.scan(step, x_ed, (layers, back_ld), reverse=True)[0]

    def log_prob(
        self, layers: Any, x_ed: Float[Array, "e d"], given_ec: Array | None = None
    ) -> Float[Array, "e"]:
        """Log density of latents, in nats, with N(0, I) as the noise distribution."""
        noise_ed, log_det_e = self.inward(layers, x_ed, given_ec)
        return log_det_e - 0.5 * jnp.sum(noise_ed**2 + LOG_2PI, axis=1)
