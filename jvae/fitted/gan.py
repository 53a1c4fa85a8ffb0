"""The conditional latent GAN of Optimus, which maps noise and a label to a latent.

Source: Li et al. 2020, arXiv 2004.04092, label-conditional generation: min over G, max over D of
E[log D(z)] + E[log(1 - D(G(e, y)))] with the autoencoder frozen. Deviations: D also reads the
label, as G would otherwise have no incentive to use it; G minimises -log D(G(e, y)); D has a
gradient penalty (`jvae.fitted.adversary`); the sizes of both networks, which the paper does not
state, are our choice.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.fitted.adversary import MOMENTUM, Net, duel
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.descent import Recipe, descend
from jvae.latent.gaussian import noise


@dataclass(frozen=True)
class GanOptions:
    """Options of the fitted prior `gan`."""

    width: int = setting(
        0,
        low=0,
        high=2**16,
        help="Width of both networks; 0: twice that of a latent, at least 128.",
    )
    layers: int = setting(2, low=1, high=1_000, help="Hidden layers of both networks.")
    steps: int = setting(4_000, low=1, high=10_000_000, help="Optimizer updates of the fit.")
    batch: int = setting(512, low=1, high=2**20, help="Latents per update.")
    lr: float = setting(5e-4, above=0.0, high=10.0, help="Peak learning rate.")
    average: float = setting(0.999, low=0.0, below=1.0, help="Decay of the parameter average.")
    penalty: float = setting(
        0.1, low=0.0, high=1e6, help="Weight of the discriminator's gradient penalty."
    )


def build(options: GanOptions, shape: tuple[int, int], labels: int) -> Density:
    """Builds the density; see `FittedKind`."""
    size = shape[0] * shape[1]
    classes = labels if labels > 1 else 0
    width = options.width or max(128, 2 * size)
    generator = Net(size + classes, size, width, options.layers)
    discriminator = Net(size + classes, 1, width, options.layers)

    def beside(x_ed: Array, label_e: Int[Array, "e"]) -> Float[Array, "e k"]:
        return jnp.concatenate([x_ed, jax.nn.one_hot(label_e, labels)[:, :classes]], axis=1)

    def loss(p: Params, u_bgz: Array, label_b: Array, key: Key[Array, ""]) -> Array:
        real_bd = u_bgz.reshape(len(u_bgz), -1)
        fake_bd = generator.apply(
            p["generator"], beside(jax.random.normal(key, real_bd.shape), label_b)
        )

        def score(judge: Params, x_bd: Array) -> Float[Array, "b"]:
            return discriminator.apply(judge, beside(x_bd, label_b))[:, 0]

        return duel(score, p["discriminator"], real_bd, fake_bd, options.penalty)

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> Params:
        first, second, key = jax.random.split(key, 3)
        p = {"generator": generator.init(first), "discriminator": discriminator.init(second)}
        recipe = Recipe(options.steps, options.batch, options.lr, options.average, MOMENTUM)
        return descend(loss, p, u_ngz, label_n, key, recipe)["generator"]

    def sample(p: Params, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        u_ed = generator.apply(p, beside(noise(key_e, (size,)), label_e))
        return u_ed.reshape(-1, *shape)

    return Density(fit, sample, log_prob=None)


FITTED.register("gan")(FittedKind(GanOptions, build))
