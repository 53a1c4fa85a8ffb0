"""Prefix tuning: learned slots in front of every row. Source: Li & Liang 2021."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.nn.layers import Embedding, Projection, dropout, uniform_fan_in
from jvae.nn.points import LatentKv


class Prefix(nn.Module):
    """Keys and values of `slots` positions for every layer, from an MLP over a learned table."""

    config: Any  # config of the stack
    slots: int
    middle: int

    @nn.compact
    def __call__(self, drop: Key[Array, ""] | None = None) -> tuple[Array, Array]:
        c = self.config
        normal = nn.initializers.normal(1.0)
        table = Embedding(self.slots, c.width, "position", c.dtype, normal, name="slot")
        h_md = table(jnp.arange(self.slots))
        down = uniform_fan_in(c.width)
        h = Projection((self.middle,), ("embed",), (None,), kernel_init=down, name="down")(h_md)
        kv_mlcnh = Projection(
            (c.layers, 2, c.kv_heads, c.head),
            (None,),
            (None, None, "heads", "head"),
            kernel_init=uniform_fan_in(self.middle),
            name="up",
        )(jnp.tanh(h))
        kv_lcmnh = jnp.moveaxis(dropout(drop, c.dropout, kv_mlcnh), 0, 2)
        return kv_lcmnh[:, 0], kv_lcmnh[:, 1]


def for_rows(
    key_lmnh: Float[Array, "l m n h"], value_lmnh: Float[Array, "l m n h"], rows: int, layers: int
) -> LatentKv:
    """Broadcasts the slots of the first `layers` layers to all rows."""

    def spread(a: Array) -> Array:
        return jnp.broadcast_to(a[:layers, None], (layers, rows, *a.shape[1:]))

    return LatentKv(spread(key_lmnh), spread(value_lmnh))
