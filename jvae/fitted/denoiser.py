"""Denoising networks, which take a noisy latent, its noise level and a label.

For a single vector this is a residual MLP; for several, a small Transformer with one token per
vector. Every layer is scaled and shifted by the embedding of level and label, through a map shared
by all layers and a bias per layer, and is initialised to the identity. Source: Chen et al. 2024,
arXiv 2310.00426, section 2.3 (adaLN-single).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.latent import nets

FREQUENCIES = 32  # number of frequencies in the embedding of the noise level
HIGHEST = 30.0  # the highest frequency, in radians per unit of log sigma / 4
NORM_EPS = 1e-6


class Denoiser(NamedTuple):
    """init(key) -> params; apply(params, x_egz, level_e, label_e) -> (E, G, Z).

    level_e and label_e have one entry per latent, or a single entry for all.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Array, Array, Array], Float[Array, "e g z"]]


def build(shape: tuple[int, int], labels: int, width: int, layers: int, heads: int) -> Denoiser:
    """Builds a network for latents (G, Z).

    Args:
      labels: rows of the table of label embeddings.
      heads: attention heads, used if G > 1.
    """
    groups, size = shape
    several = groups > 1
    parts = 2 if several else 1  # attention and feed-forward, or only feed-forward

    def layer(key: Key[Array, ""]) -> Params:
        key_i = jax.random.split(key, 4)
        p = {
            "up": nets.affine(key_i[0], width, 2 * width),
            "down": nets.affine(key_i[1], 2 * width, width),
            "modulation": jnp.zeros((3 * parts * width,)),
        }
        if several:
            p["qkv"] = nets.affine(key_i[2], width, 3 * width)
            p["mixed"] = nets.affine(key_i[3], width, width)
        return p

    def init(key: Key[Array, ""]) -> Params:
        key_i = jax.random.split(key, 6)
        return {
            "level": nets.affine(key_i[0], 2 * FREQUENCIES, width),
            "label": 0.02 * jax.random.normal(key_i[1], (labels, width)),
            "embed": nets.affine(key_i[2], width, width),
            "in": nets.affine(key_i[3], size, width),
            "group": 0.02 * jax.random.normal(key_i[4], (groups, width)),
            "modulation": nets.affine(key, width, 3 * parts * width, zero=True),
            "layers": jax.vmap(layer)(jax.random.split(key_i[5], layers)),
            "out": nets.affine(key, width, size, zero=True),
            "last": nets.affine(key, width, 2 * width, zero=True),
        }

    def embedding(p: Params, level_e: Array, label_e: Array) -> Float[Array, "e d"]:
        frequency_f = jnp.asarray(np.geomspace(0.1, HIGHEST, FREQUENCIES), level_e.dtype)
        angle_ef = level_e[:, None] * frequency_f[None]
        wave_ef = jnp.concatenate([jnp.sin(angle_ef), jnp.cos(angle_ef)], axis=1)
        h_ed = nets.apply(p["level"], wave_ef) + p["label"][label_e]
        return jax.nn.silu(nets.apply(p["embed"], jax.nn.silu(h_ed)))

    def attention(p: Params, h_egd: Array) -> Float[Array, "e g d"]:
        q, k, v = jnp.split(nets.apply(p["qkv"], h_egd), 3, axis=2)
        q, k, v = (x.reshape(-1, groups, heads, width // heads) for x in (q, k, v))
        score_ehgk = jnp.einsum("eghd,ekhd->ehgk", q, k) / np.sqrt(width / heads)
        mixed = jnp.einsum("ehgk,ekhd->eghd", jax.nn.softmax(score_ehgk, axis=-1), v)
        return nets.apply(p["mixed"], mixed.reshape(h_egd.shape))

    def forward(p: Params, h_egd: Array) -> Float[Array, "e g d"]:
        return nets.apply(p["down"], jax.nn.silu(nets.apply(p["up"], h_egd)))

    def apply(p: Params, x_egz: Array, level_e: Array, label_e: Array) -> Float[Array, "e g z"]:
        embedding_ed = embedding(p, level_e, label_e)
        every_e1d = nets.apply(p["modulation"], embedding_ed)[:, None]

        def block(h_egd: Array, q: Params) -> tuple[Array, None]:
            own_e1d = every_e1d + q["modulation"][None, None]
            steps = (attention, forward)[-parts:]
            for step, changes in zip(steps, jnp.split(own_e1d, parts, axis=2), strict=True):
                shift, scale, gate = jnp.split(changes, 3, axis=2)
                h_egd = h_egd + gate * step(q, _normed(h_egd) * (1 + scale) + shift)
            return h_egd, None

        h_egd = nets.apply(p["in"], x_egz) + p["group"][None]
        h_egd, _ = jax.lax.scan(block, h_egd, p["layers"])
        shift, scale = jnp.split(nets.apply(p["last"], embedding_ed)[:, None], 2, axis=2)
        return nets.apply(p["out"], _normed(h_egd) * (1 + scale) + shift)

    return Denoiser(init, apply)


def _normed(h_egd: Array) -> Float[Array, "e g d"]:
    left_egd = h_egd - jnp.mean(h_egd, axis=2, keepdims=True)
    return left_egd * jax.lax.rsqrt(jnp.mean(left_egd**2, axis=2, keepdims=True) + NORM_EPS)
