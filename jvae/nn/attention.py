"""Attention over packed rows, with latent slots.

A batch never contains latent slots. They enter here, as extra keys and values in front of the row,
one per slot of the row; a token sees the slot of its own segment and no other, whatever the causal
mask says of tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Side
from jvae.errors import ConfigError
from jvae.nn import fused
from jvae.nn.layers import accum_dtype, dropout
from jvae.nn.xent import soft_cap

EVERYONE = 0  # owner of a slot that all tokens see; segments count from 1


class MaskSpec(NamedTuple):
    """Which tokens see which: those of their own segment and, if `causal`, none behind them.

    Padding is a segment of its own, 0, so no query is left without a key.
    """

    query_bt: Int[Array, "b t"]
    key_bs: Int[Array, "b s"]
    causal: bool  # positions grow along a segment, so row order decides
    position_bt: Int[Array, "b t"] | None = None  # needed where `reach` bounds the distance

    def mask(self, reach: int | None = None, always: int = 0) -> Bool[Array, "b t s"]:
        """True where the key is seen.

        Args:
          reach: the largest distance in positions; None for no bound.
          always: keys of positions below it are seen at any distance.
        Raises: ValueError for a reach without positions.
        """
        seen_bts = self.query_bt[:, :, None] == self.key_bs[:, None, :]
        if self.causal:
            seen_bts = seen_bts & jnp.tril(jnp.ones(seen_bts.shape[1:], bool))[None]
        if reach is None:
            return seen_bts
        if self.position_bt is None:
            raise ValueError("layers with a window need the positions of the tokens")
        return seen_bts & within(
            self.position_bt[:, :, None], self.position_bt[:, None, :], reach, always
        )


def within(
    query: Int[Array, "..."], key: Int[Array, "..."], reach: int, always: int = 0
) -> Bool[Array, "..."]:
    """Whether a query sees a key under a window of `reach` positions; see `MaskSpec.mask`."""
    return (jnp.abs(query - key) <= reach) | (key < always)


class Slots(NamedTuple):
    """Keys and values placed before the tokens of a row, and the segment that sees each."""

    key_bmnh: Float[Array, "b m n h"]
    value_bmnh: Float[Array, "b m n h"]
    owner_m: Int[np.ndarray, "m"]


def segments(side: Side, *, causal: bool) -> MaskSpec:
    """Tokens that see their own example."""
    return MaskSpec(side.segment_bt, side.segment_bt, causal, side.position_bt)


def same_segment(side: Side) -> Bool[Array, "b t t"]:
    """True where query and key token belong to one segment."""
    return segments(side, causal=False).mask()


def causal(side: Side) -> Bool[Array, "b t t"]:
    """`same_segment` and not later."""
    return segments(side, causal=True).mask()


def owners(slots: int) -> Int[np.ndarray, "s"]:
    """Slot s belongs to segment s + 1: one latent per example of a row."""
    return np.arange(1, slots + 1, dtype=np.int32)


def for_everyone(slots: int) -> Int[np.ndarray, "m"]:
    """Slots that all tokens see, of every segment."""
    return np.full(slots, EVERYONE, np.int32)


def own_slot(side: Side, slots: int) -> Bool[Array, "b t s"]:
    """True where slot s holds the latent of token t's segment."""
    return side.segment_bt[:, :, None] == owners(slots)[None, None]


def spread(value_ed: Float[Array, "e d"], side: Side) -> Float[Array, "b t d"]:
    """Each token's own example's vector; padding, which no valid token sees, gets slot 0's."""
    rows = side.segment_bt.shape[0]
    value_bsd = value_ed.reshape(rows, -1, value_ed.shape[-1])
    index_bt = jnp.maximum(side.segment_bt - 1, 0)
    return jnp.take_along_axis(value_bsd, index_bt[:, :, None], axis=1)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bsgh: Float[Array, "b s g h"],
    v_bsgh: Float[Array, "b s g h"],
    mask_spec: MaskSpec,
    slots: Slots | None = None,
    *,
    seen_bts: Bool[Array, "b t s"] | None = None,
    scale: float | None = None,
    cap: float | None = None,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
    kernel: str = "xla",
) -> Float[Array, "b t n h"]:
    """Softmax attention, logits and softmax in float32 or wider.

    Keys and values may have fewer heads than queries, G: query head i reads i // (N / G).

    Args:
      slots: latent slots, in front of the tokens.
      seen_bts: takes the place of `mask_spec.mask()` among tokens.
      scale: factor of the logits; None for h ** -0.5. cap: see `jvae.nn.xent.soft_cap`.
      drop, rate: dropout on the attention weights.
      kernel: "xla", or a fused one of `jvae.nn.fused.KERNELS`. Those never hold the weights, so
        where these are dropped "xla" computes.
    Raises: ConfigError for what a fused kernel cannot do: a soft cap, and under "splash", which
      knows segments only, windows and slots that everyone sees.
    """
    if slots is not None:
        k_bsgh = jnp.concatenate([slots.key_bmnh.astype(k_bsgh.dtype), k_bsgh], axis=1)
        v_bsgh = jnp.concatenate([slots.value_bmnh.astype(v_bsgh.dtype), v_bsgh], axis=1)
    dropped = drop is not None and rate > 0
    if kernel != "xla" and not dropped:
        if cap is not None:
            raise ConfigError(f"attention={kernel} has no soft cap on its logits; use xla")
        if scale is not None:
            q_btnh = q_btnh * (scale * q_btnh.shape[-1] ** 0.5)
    if kernel == "splash" and not dropped:
        in_front = 0 if slots is None else slots.owner_m.shape[0]
        key_bs = mask_spec.key_bs
        if seen_bts is not None:
            raise ConfigError("attention=splash knows segments only, no windows; use xla or cudnn")
        if slots is not None:
            if np.any(slots.owner_m == EVERYONE):
                raise ConfigError(
                    "attention=splash knows segments only, and a prefix is seen by all of them; "
                    "use xla or cudnn"
                )
            rows = key_bs.shape[0]
            owner_bm = jnp.broadcast_to(slots.owner_m, (rows, in_front)).astype(key_bs.dtype)
            key_bs = jnp.concatenate([owner_bm, key_bs], axis=1)
        return fused.splash(
            *(q_btnh, k_bsgh, v_bsgh, mask_spec.query_bt, key_bs),
            causal_from=in_front if mask_spec.causal else None,
        )
    mask_bts = mask_spec.mask() if seen_bts is None else seen_bts
    if slots is not None:
        own_btm = mask_spec.query_bt[:, :, None] == slots.owner_m[None, None]
        seen_btm = own_btm | (slots.owner_m == EVERYONE)[None, None]
        mask_bts = jnp.concatenate([seen_btm, mask_bts], axis=2)
    if kernel == "cudnn" and not dropped:
        return fused.cudnn(q_btnh, k_bsgh, v_bsgh, mask_bts)
    return masked(q_btnh, k_bsgh, v_bsgh, mask_bts, scale=scale, cap=cap, drop=drop, rate=rate)


def masked(
    q_btnh: Float[Array, "b t n h"],
    k_bsgh: Float[Array, "b s g h"],
    v_bsgh: Float[Array, "b s g h"],
    mask_bts: Bool[Array, "#b #t s"],
    *,
    scale: float | None = None,
    cap: float | None = None,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
) -> Float[Array, "b t n h"]:
    """`attend` under any mask, True where a key is seen: the reference."""
    factor = q_btnh.shape[-1] ** -0.5 if scale is None else scale
    acc = accum_dtype(q_btnh.dtype)
    heads, kv_heads = q_btnh.shape[2], k_bsgh.shape[2]
    # A finite floor keeps queries without any visible key (padding) finite; they are never scored.
    floor = jnp.finfo(acc).min / 2
    if heads == kv_heads:
        logits_bnts = jnp.einsum("btnh,bsnh->bnts", q_btnh, k_bsgh, preferred_element_type=acc)
        logits_bnts = soft_cap(logits_bnts * factor, cap)
        logits_bnts = jnp.where(mask_bts[:, None], logits_bnts, floor)
        weight_bnts = dropout(drop, rate, jax.nn.softmax(logits_bnts, axis=-1))
        return jnp.einsum("bnts,bsnh->btnh", weight_bnts.astype(v_bsgh.dtype), v_bsgh)
    q_btgrh = by_group(q_btnh, kv_heads)
    logits_bgrts = jnp.einsum("btgrh,bsgh->bgrts", q_btgrh, k_bsgh, preferred_element_type=acc)
    logits_bgrts = soft_cap(logits_bgrts * factor, cap)
    logits_bgrts = jnp.where(mask_bts[:, None, None], logits_bgrts, floor)
    weight_bgrts = dropout(drop, rate, jax.nn.softmax(logits_bgrts, axis=-1))
    mixed_btgrh = jnp.einsum("bgrts,bsgh->btgrh", weight_bgrts.astype(v_bsgh.dtype), v_bsgh)
    return mixed_btgrh.reshape(q_btnh.shape)


def by_group(q: Float[Array, "... n h"], kv_heads: int) -> Float[Array, "... g r h"]:
    """Query heads in the groups that share a key and value head."""
    return q.reshape(*q.shape[:-2], kv_heads, -1, q.shape[-1])
