"""From the states of a packed row to one vector per example."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Side
from jvae.nn.attention import own_slot
from jvae.nn.layers import wide


def first_token(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The state at position 0 of each segment ([CLS]); zeros at empty slots."""
    weight_bts = own_slot(side, slots) & (side.position_bt == 0)[:, :, None]
    return jnp.einsum("bts,btd->bsd", weight_bts.astype(x_btd.dtype), x_btd).reshape(
        -1, x_btd.shape[-1]
    )


def mean(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The mean state of each segment, in float32 or wider inside; zeros at empty slots."""
    acc = wide(x_btd.dtype)
    weight_bts = own_slot(side, slots).astype(acc)
    total_bsd = jnp.einsum("bts,btd->bsd", weight_bts, x_btd.astype(acc))
    count_bs = jnp.maximum(jnp.sum(weight_bts, axis=1), 1.0)
    return (total_bsd / count_bs[..., None]).astype(x_btd.dtype).reshape(-1, x_btd.shape[-1])


def maximum(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The largest value of each feature over each segment; zeros at empty slots."""
    own_bts = own_slot(side, slots)
    floor = jnp.finfo(x_btd.dtype).min
    # The gradient of a maximum compares it with its inputs, which fails (NaN) where the compiler
    # computes them twice and rounds differently; that of a look-up compares nothing.
    place_bsd = jnp.argmax(jnp.where(own_bts[..., None], x_btd[:, :, None], floor), axis=1)
    top_bsd = jnp.take_along_axis(x_btd, place_bsd, axis=1)
    filled_bs = jnp.any(own_bts, axis=1)
    return jnp.where(filled_bs[..., None], top_bsd, 0.0).reshape(-1, x_btd.shape[-1])
