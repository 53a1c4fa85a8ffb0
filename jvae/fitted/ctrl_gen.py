"""Ctrl-Gen of AdaVAE: a label-free latent v = W u, plus one vector c_y per label.

The sum v + c_y is trained to reconstruct u, so that W keeps as much information as possible. A
classifier predicts the label from v, and W is trained to make this impossible. For samples,
W' e + b with noise e replaces v; a discriminator compares it with real ones. Samples of a label are
W' e + b + c_y; a latent moved to a label is W u + c_y.

Source: released code of Tu et al. 2022, arXiv 2205.05862 (`controlgen/`), after that of Li et al.
2020. Deviations:
- The autoencoder stays frozen, so the latent is reconstructed, not its text.
- Each loss term updates only its own network. In the released sum, the terms of classifier and W
  cancel (1 - L + L), and discriminator and generator are pulled in the same direction.
- W targets the label frequencies rather than the maximum error of the classifier, which is
  unbounded.
- Classifier and discriminator have a hidden layer, as linear ones only compare means; the
  discriminator has a gradient penalty.
- The vector of the first label is free rather than 0, as latents are standardised and W has no
  bias.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient as held
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.fitted.adversary import MOMENTUM, Net, duel
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.fitted.descent import Recipe, descend
from jvae.latent import nets
from jvae.latent.gaussian import noise


@dataclass(frozen=True)
class CtrlGenOptions:
    """Options of the fitted prior `ctrl_gen`."""

    width: int = setting(
        128, low=1, high=2**16, help="Width of the classifier and the discriminator."
    )
    layers: int = setting(
        1, low=0, high=1_000, help="Hidden layers of classifier and discriminator; 0: linear."
    )
    weight: float = setting(
        0.5,
        above=0.0,
        high=1e6,
        help="Weight of all terms except the reconstruction, as published.",
    )
    steps: int = setting(4_000, low=1, high=10_000_000, help="Optimizer updates of the fit.")
    batch: int = setting(512, low=1, high=2**20, help="Latents per update.")
    lr: float = setting(1e-3, above=0.0, high=10.0, help="Peak learning rate.")
    average: float = setting(0.999, low=0.0, below=1.0, help="Decay of the parameter average.")
    penalty: float = setting(
        0.1, low=0.0, high=1e6, help="Weight of the discriminator's gradient penalty."
    )


def build(options: CtrlGenOptions, shape: tuple[int, int], labels: int) -> Density:
    """Builds the density; see `FittedKind`."""
    size = shape[0] * shape[1]
    classifier = Net(size, labels, options.width, options.layers)
    discriminator = Net(size, 1, options.width, options.layers)

    def loss(p: Params, u_bgz: Array, label_b: Array, key: Key[Array, ""]) -> Array:
        u_bd, known_bc = u_bgz.reshape(len(u_bgz), -1), jax.nn.one_hot(label_b, labels)
        v_bd = u_bd @ p["remover"]
        fake_bd = nets.apply(p["generator"], jax.random.normal(key, u_bd.shape))

        def doubt(judge: Params, x_bd: Array, wanted_bc: Array) -> Float[Array, ""]:
            return jnp.mean(optax.softmax_cross_entropy(classifier.apply(judge, x_bd), wanted_bc))

        def score(judge: Params, x_bd: Array) -> Float[Array, "b"]:
            return discriminator.apply(judge, x_bd)[:, 0]

        kept = jnp.mean((v_bd + p["label"][label_b] - u_bd) ** 2)
        read = doubt(p["classifier"], held(v_bd), known_bc)
        share_bc = jnp.broadcast_to(jnp.mean(known_bc, axis=0, keepdims=True), known_bc.shape)
        hidden = doubt(held(p["classifier"]), v_bd, share_bc)
        drawn = duel(score, p["discriminator"], v_bd, fake_bd, options.penalty)
        return kept + options.weight * (read + hidden + drawn)

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> Params:
        first, second, key = jax.random.split(key, 3)
        p = {
            "remover": jnp.eye(size),
            "label": jnp.zeros((labels, size)),
            "generator": {"kernel": jnp.eye(size), "bias": jnp.zeros((size,))},
            "classifier": classifier.init(first),
            "discriminator": discriminator.init(second),
        }
        recipe = Recipe(options.steps, options.batch, options.lr, options.average, MOMENTUM)
        p = descend(loss, p, u_ngz, label_n, key, recipe)
        return {name: p[name] for name in ("remover", "label", "generator")}

    def sample(p: Params, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        v_ed = nets.apply(p["generator"], noise(key_e, (size,)))
        return (v_ed + p["label"][label_e]).reshape(-1, *shape)

    def moved(p: Params, u_egz: Array, label: Array) -> Float[Array, "e g z"]:
        v_ed = u_egz.reshape(-1, size) @ p["remover"]
        return (v_ed + p["label"][label][None]).reshape(u_egz.shape)

    return Density(fit, sample, log_prob=None, moved=moved)


FITTED.register("ctrl_gen")(FittedKind(CtrlGenOptions, build, labelled=True))
