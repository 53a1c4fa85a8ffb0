"""Adversarial training of two networks in one descent.

Each term of the loss updates only its own network; the other one is held fixed by `stop_gradient`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient as held
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.latent import nets

SLOPE = 0.2  # slope of the activation below 0
MOMENTUM = 0.5  # Adam's b1: higher momentum makes adversarial training oscillate


class Net(NamedTuple):
    """A multilayer perceptron with `layers` hidden layers."""

    inputs: int
    outputs: int
    width: int
    layers: int

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters."""
        sizes = (self.inputs, *[self.width] * self.layers, self.outputs)
        ends = zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
        return {
            f"layer_{i}": nets.affine(layer_key, a, b) for i, (layer_key, a, b) in enumerate(ends)
        }

    def apply(self, p: Params, x_ed: Float[Array, "e d"]) -> Float[Array, "e k"]:
        """Applies the network."""
        for i in range(self.layers):
            x_ed = jax.nn.leaky_relu(nets.apply(p[f"layer_{i}"], x_ed), SLOPE)
        return nets.apply(p[f"layer_{self.layers}"], x_ed)


def duel(
    score: Callable[[Params, Array], Float[Array, "e"]],
    judge: Params,
    real_ed: Float[Array, "e d"],
    fake_ed: Float[Array, "e d"],
    penalty: float,
) -> Float[Array, ""]:
    """Loss of a discriminator plus that of the generator, -log D(fake).

    No gradient flows through the real latents.

    Args:
      score: (judge, latents) -> log-odds of being real.
      penalty: weight of R1, half the squared gradient of the score at real latents, without which
        adversarial training may not converge. Source: Mescheder et al. 2018, arXiv 1801.04406.
    """
    real_ed = held(real_ed)
    real_e, fake_e = score(judge, real_ed), score(judge, held(fake_ed))
    slope_ed = jax.grad(lambda x_ed: jnp.sum(score(judge, x_ed)))(real_ed)
    judged = jnp.mean(jax.nn.softplus(-real_e) + jax.nn.softplus(fake_e))
    judged += 0.5 * penalty * jnp.mean(jnp.sum(slope_ed**2, axis=1))
    return judged + jnp.mean(jax.nn.softplus(-score(held(judge), fake_ed)))
