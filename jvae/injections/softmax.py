"""Projects z to the vocabulary and adds it to the scores of every token: the "Softmax" baseline.

Source: Hu et al. 2022, 3.3, where z is combined with the last hidden state before the output
projection. There as here, the result is a linear map from z to the scores whose rank is the latent
size; here its table is a free parameter.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Params
from jvae.injections.contract import Injection, Once, Reach
from jvae.nn.backbone import Stack
from jvae.nn.layers import Initializer

NAME = "scores"


def softmax(stack: Stack, shape: tuple[int, int], start: Initializer) -> Injection:
    """The injection for latents of shape (G, Z), with all vectors concatenated."""
    c = stack.config

    def init(key: Key[Array, ""]) -> Params:
        table_vz = start(key, (c.vocab_padded, shape[0] * shape[1]), jnp.float32)
        return {NAME: {"table": nn.LogicallyPartitioned(table_vz, ("vocab", "latent"))}}

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        del params, rows, once, decoding
        return Reach(feature_ec=z_egz.reshape(len(z_egz), -1).astype(c.dtype))

    return Injection(
        frozenset({"decode", "features"}), init, reach, table=lambda params: params[NAME]["table"]
    )
