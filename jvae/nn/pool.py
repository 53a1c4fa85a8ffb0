"""Pooling: from the states of packed rows to one vector per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Side
from jvae.nn.attention import own_slot
from jvae.nn.layers import accum_dtype


def first_token(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The state at position 0 of each segment ([CLS]); zeros at empty slots."""
    weight_bts = own_slot(side, slots) & (side.position_bt == 0)[:, :, None]
    return jnp.einsum("bts,btd->bsd", weight_bts.astype(x_btd.dtype), x_btd).reshape(
        -1, x_btd.shape[-1]
    )


def mean(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The mean state of each segment, computed in float32 or wider; zeros at empty slots."""
    acc = accum_dtype(x_btd.dtype)
    weight_bts = own_slot(side, slots).astype(acc)
    total_bsd = jnp.einsum("bts,btd->bsd", weight_bts, x_btd.astype(acc))
    count_bs = jnp.maximum(jnp.sum(weight_bts, axis=1), 1.0)
    return (total_bsd / count_bs[..., None]).astype(x_btd.dtype).reshape(-1, x_btd.shape[-1])


def maximum(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The largest value of each feature over each segment; zeros at empty slots."""
    own_bts = own_slot(side, slots)
    floor = jnp.finfo(x_btd.dtype).min
    # The gradient of a maximum compares it with its inputs, which gives NaN if the compiler
    # computes them twice and rounds differently. That of a look-up has no such comparison.
    place_bsd = jnp.argmax(jnp.where(own_bts[..., None], x_btd[:, :, None], floor), axis=1)
    top_bsd = jnp.take_along_axis(x_btd, place_bsd, axis=1)
    filled_bs = jnp.any(own_bts, axis=1)
    return jnp.where(filled_bs[..., None], top_bsd, 0.0).reshape(-1, x_btd.shape[-1])


def last_token(x_btd: Float[Array, "b t d"], side: Side, slots: int) -> Float[Array, "e d"]:
    """The state of the last token of each segment; zeros at empty slots."""
    following_bt = jnp.pad(side.segment_bt[:, 1:], ((0, 0), (0, 1)))
    last_bts = own_slot(side, slots) & (side.segment_bt != following_bt)[:, :, None]
    out_bsd = jnp.einsum("bts,btd->bsd", last_bts.astype(x_btd.dtype), x_btd)
    return out_bsd.reshape(-1, x_btd.shape[-1])


BY_NAME: dict[str, Callable[[Array, Side, int], Array]] = {
    "first": first_token,
    "mean": mean,
    "max": maximum,
    "last": last_token,
}


def weighted(
    x_btd: Float[Array, "b t d"], logit_bt: Float[Array, "b t"], side: Side, slots: int
) -> Float[Array, "e d"]:
    """The states of each segment weighted by the softmax of its logits; zeros at empty slots."""
    own_bts = own_slot(side, slots)
    floor = jnp.finfo(logit_bt.dtype).min
    weight_bts = jax.nn.softmax(jnp.where(own_bts, logit_bt[:, :, None], floor), axis=1) * own_bts
    x_bsd = jnp.einsum("bts,btd->bsd", weight_bts, x_btd.astype(weight_bts.dtype))
    return x_bsd.astype(x_btd.dtype).reshape(-1, x_btd.shape[-1])


def _attention_logits(x_btd: Array, query_d: Array) -> Array:
    x_btd = x_btd.astype(accum_dtype(x_btd.dtype))
    return jax.nn.gelu(jnp.einsum("btd,d->bt", x_btd, query_d.astype(x_btd.dtype)))


def attention(
    x_btd: Float[Array, "b t d"], query_d: Float[Array, "d"], side: Side, slots: int
) -> Float[Array, "e d"]:
    """The states of each segment weighted by softmax(gelu(x . query)) over its tokens.

    Computed in float32 or wider; zeros at empty slots. Source: Hu et al. 2022 (DELLA), released
    code. Deviation: the softmax is restricted to the segment; see `attention_unmasked`.
    """
    return weighted(x_btd, _attention_logits(x_btd, query_d), side, slots)


def attention_unmasked(
    x_btd: Float[Array, "b t d"], query_d: Float[Array, "d"]
) -> Float[Array, "b d"]:
    """`attention` over whole rows, padding included, so that the result depends on the row length.

    Source: Hu et al. 2022 (DELLA), released code.
    """
    weight_bt = jax.nn.softmax(_attention_logits(x_btd, query_d), axis=1)
    x_bd = jnp.einsum("bt,btd->bd", weight_bt, x_btd.astype(weight_bt.dtype))
    return x_bd.astype(x_btd.dtype)
