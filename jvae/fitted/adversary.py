"""Two networks against each other in one descent: each term of the loss moves its own side, as the
other side is held by `stop_gradient`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient as held
from jaxtyping import Array, Float, Key

from jvae.latent import nets

SLOPE = 0.2  # of the activation below 0
MOMENTUM = 0.5  # of Adam: a long memory of gradients makes two sides circle around each other


class Net(NamedTuple):
    """A perceptron of `layers` hidden layers."""

    inputs: int
    outputs: int
    width: int
    layers: int

    def init(self, key: Key[Array, ""]) -> Any:
        """Parameters."""
        sizes = (self.inputs, *[self.width] * self.layers, self.outputs)
        ends = zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
        return {f"layer_{i}": nets.affine(one, a, b) for i, (one, a, b) in enumerate(ends)}

    def apply(self, p: Any, x_ed: Float[Array, "e d"]) -> Float[Array, "e k"]:
        """The outputs."""
        for i in range(self.layers):
            x_ed = jax.nn.leaky_relu(nets.apply(p[f"layer_{i}"], x_ed), SLOPE)
        return nets.apply(p[f"layer_{self.layers}"], x_ed)


def duel(
    score: Callable[[Any, Array], Float[Array, "e"]],
    judge: Any,
    real_ed: Float[Array, "e d"],
    fake_ed: Float[Array, "e d"],
    penalty: float,
) -> Float[Array, ""]:
    """Loss of a discriminator plus that of what makes the fakes, -log D(fake); real latents move
    neither.

    Args:
      score: (judge, latents) -> log-odds of being real.
      penalty: weight of R1, half the squared gradient of the score at real latents, without which
        such games need not converge. Source: Mescheder et al. 2018, arXiv 1801.04406.
    """
    real_ed = held(real_ed)
    real_e, fake_e = score(judge, real_ed), score(judge, held(fake_ed))
    slope_ed = jax.grad(lambda x_ed: jnp.sum(score(judge, x_ed)))(real_ed)
    judged = jnp.mean(jax.nn.softplus(-real_e) + jax.nn.softplus(fake_e))
    judged += 0.5 * penalty * jnp.mean(jnp.sum(slope_ed**2, axis=1))
    return judged + jnp.mean(jax.nn.softplus(-score(held(judge), fake_ed)))
