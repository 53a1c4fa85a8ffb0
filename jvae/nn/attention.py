"""Attention over packed rows, with latent slots.

A batch never contains latent slots. They enter here, as extra keys and values in front of the row,
one per slot of the row; a token sees the slot of its own segment and no other, whatever the causal
mask says of tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Side
from jvae.nn.layers import dropout, wide


class Slots(NamedTuple):
    """Keys and values placed before the tokens of a row, and who sees them."""

    key_bmnh: Float[Array, "b m n h"]
    value_bmnh: Float[Array, "b m n h"]
    visible_btm: Bool[Array, "b t m"]


def same_segment(side: Side) -> Bool[Array, "b t t"]:
    """True where query and key token belong to one segment; padding sees padding, so no row of the
    mask is empty.
    """
    return side.segment_bt[:, :, None] == side.segment_bt[:, None, :]


def causal(side: Side) -> Bool[Array, "b t t"]:
    """`same_segment` and not later: positions grow along a segment, so row order decides."""
    t = side.token_bt.shape[1]
    return same_segment(side) & jnp.tril(jnp.ones((t, t), bool))[None]


def own_slot(side: Side, slots: int) -> Bool[Array, "b t s"]:
    """True where slot s holds the latent of token t's segment."""
    return side.segment_bt[:, :, None] == jnp.arange(1, slots + 1)[None, None]


def spread(value_ed: Float[Array, "e d"], side: Side) -> Float[Array, "b t d"]:
    """Each token's own example's vector; padding, which no valid token sees, gets slot 0's."""
    rows = side.segment_bt.shape[0]
    value_bsd = value_ed.reshape(rows, -1, value_ed.shape[-1])
    index_bt = jnp.maximum(side.segment_bt - 1, 0)
    return jnp.take_along_axis(value_bsd, index_bt[:, :, None], axis=1)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    mask_bts: Bool[Array, "b t s"],
    slots: Slots | None = None,
    *,
    scale: float | None = None,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
) -> Float[Array, "b t n h"]:
    """Softmax attention, logits and softmax in float32 or wider.

    Args:
      mask_bts: True where the token key may be seen.
      slots: latent slots, in front of the tokens.
      scale: factor of the logits; 1/sqrt(h) when None.
      drop, rate: dropout on the attention weights.
    """
    if slots is not None:
        k_bsnh = jnp.concatenate([slots.key_bmnh.astype(k_bsnh.dtype), k_bsnh], axis=1)
        v_bsnh = jnp.concatenate([slots.value_bmnh.astype(v_bsnh.dtype), v_bsnh], axis=1)
        mask_bts = jnp.concatenate([slots.visible_btm, mask_bts], axis=2)
    factor = q_btnh.shape[-1] ** -0.5 if scale is None else scale
    logits_bnts = jnp.einsum(
        "btnh,bsnh->bnts", q_btnh, k_bsnh, preferred_element_type=wide(q_btnh.dtype)
    )
    # A finite floor keeps queries without any visible key (padding) finite; they are never scored.
    floor = jnp.finfo(logits_bnts.dtype).min / 2
    logits_bnts = jnp.where(mask_bts[:, None], logits_bnts * factor, floor)
    weight_bnts = dropout(drop, rate, jax.nn.softmax(logits_bnts, axis=-1))
    return jnp.einsum("bnts,bsnh->btnh", weight_bnts.astype(v_bsnh.dtype), v_bsnh)


def attend_cached(
    q_enh: Float[Array, "e n h"],
    k_emnh: Float[Array, "e m n h"],
    v_emnh: Float[Array, "e m n h"],
    last_e: Int[Array, "e"],
) -> Float[Array, "e n h"]:
    """Attention of one new token per example over the places 0..last_e of its cache."""
    visible_em = jnp.arange(k_emnh.shape[1])[None] <= last_e[:, None]
    return attend(q_enh[:, None], k_emnh, v_emnh, visible_em[:, None])[:, 0]
