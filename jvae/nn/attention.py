"""Attention over packed rows, with latent slots.

A batch never contains latent slots. They are added here as extra keys and values in front of the
row, one per slot of the row. A token attends only to the slot of its own segment; the causal mask
does not apply to slots.
"""

import importlib
from types import ModuleType
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

EVERYONE = 0  # owner of a slot visible to all tokens; segments count from 1


class MaskSpec(NamedTuple):
    """Attention mask: tokens attend within their segment and, if `causal`, not to later tokens.

    Padding is its own segment, 0, so that every query has a key.
    """

    query_bt: Int[Array, "b t"]
    key_bs: Int[Array, "b s"]
    causal: bool  # compares row order, which agrees with positions within a segment
    position_bt: Int[Array, "b t"] | None = None  # required if `reach` bounds the distance

    def mask(self, reach: int | None = None, always: int = 0) -> Bool[Array, "b t s"]:
        """True where the key is visible to the query.

        Args:
          reach: maximum distance in positions; None for no bound.
          always: keys at positions below this are visible at any distance.
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
    """Whether a key is visible to a query with a window of `reach`; see `MaskSpec.mask`."""
    return (jnp.abs(query - key) <= reach) | (key < always)


class Slots(NamedTuple):
    """Keys and values in front of the tokens of a row, with the segment that each is visible to."""

    key_bmnh: Float[Array, "b m n h"]
    value_bmnh: Float[Array, "b m n h"]
    owner_m: Int[np.ndarray, "m"]


def segments(side: Side, *, causal: bool) -> MaskSpec:
    """The mask spec of a side: tokens attend within their own example."""
    return MaskSpec(side.segment_bt, side.segment_bt, causal, side.position_bt)


def same_segment(side: Side) -> Bool[Array, "b t t"]:
    """True where query and key belong to the same segment."""
    return segments(side, causal=False).mask()


def causal(side: Side) -> Bool[Array, "b t t"]:
    """True where query and key belong to the same segment and the key is not later."""
    return segments(side, causal=True).mask()


def owners(slots: int) -> Int[np.ndarray, "s"]:
    """Owners of one latent slot per example of a row: slot s belongs to segment s + 1."""
    return np.arange(1, slots + 1, dtype=np.int32)


def for_everyone(slots: int) -> Int[np.ndarray, "m"]:
    """Owners that make slots visible to the tokens of all segments."""
    return np.full(slots, EVERYONE, np.int32)


def own_slot(side: Side, slots: int) -> Bool[Array, "b t s"]:
    """True where slot s holds the latent of token t's segment."""
    return side.segment_bt[:, :, None] == owners(slots)[None, None]


def spread(value_ed: Float[Array, "e d"], side: Side) -> Float[Array, "b t d"]:
    """Broadcasts each example's vector to its tokens.

    Padding, which valid tokens do not attend to, gets the vector of slot 0.
    """
    rows = side.segment_bt.shape[0]
    # Gradients are added up in float32; in 16 bits GPUs would do so very slowly.
    value_bsd = value_ed.reshape(rows, -1, value_ed.shape[-1]).astype(accum_dtype(value_ed.dtype))
    index_bt = jnp.maximum(side.segment_bt - 1, 0)
    return jnp.take_along_axis(value_bsd, index_bt[:, :, None], axis=1).astype(value_ed.dtype)


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
    """Softmax attention, with logits and softmax in float32 or wider.

    Keys and values may have fewer heads G than queries: query head i uses head i // (N / G).

    Args:
      slots: latent slots, in front of the tokens.
      seen_bts: replaces `mask_spec.mask()` among tokens.
      scale: factor of the logits; None for h ** -0.5. cap: see `jvae.nn.xent.soft_cap`.
      drop, rate: dropout on the attention weights.
      kernel: "xla", or a fused one of `jvae.nn.fused.KERNELS`, which never materialises the
        attention weights.
    Raises: ConfigError for what a fused kernel lacks: soft caps (all), dropout of weights (all but
      "triton"), windows (all but "cudnn"), slots visible to all segments ("splash").
    """
    if kernel != "xla":
        _check_fused(kernel, 0.0 if drop is None else rate, cap, seen_bts, slots)
    if slots is not None:
        key_bmgh, value_bmgh = (x.astype(k_bsgh.dtype) for x in slots[:2])
        slots = Slots(key_bmgh, value_bmgh, slots.owner_m)
    if kernel == "triton":
        if q_btnh.shape[-1] & (q_btnh.shape[-1] - 1):
            raise ConfigError(
                "attention=triton needs a head width that is a power of 2, not "
                f"{q_btnh.shape[-1]}; "
                "use xla or cudnn"
            )
        seed_2 = None if drop is None or rate == 0 else jax.random.bits(drop, (2,), jnp.uint32)
        return triton_module("packed_kernel").attend(
            *(q_btnh, k_bsgh, v_bsgh, mask_spec.query_bt, mask_spec.key_bs),
            None if slots is None else (slots[0], slots[1], jnp.asarray(slots.owner_m)),
            seed_2,
            causal=mask_spec.causal,
            rate=rate,
            scale=scale,
        )
    if slots is not None:
        k_bsgh = jnp.concatenate([slots.key_bmnh, k_bsgh], axis=1)
        v_bsgh = jnp.concatenate([slots.value_bmnh, v_bsgh], axis=1)
    if kernel != "xla" and scale is not None:
        q_btnh = q_btnh * (scale * q_btnh.shape[-1] ** 0.5)
    if kernel == "splash":
        in_front = 0 if slots is None else slots.owner_m.shape[0]
        key_bs = mask_spec.key_bs
        if slots is not None:
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
    if kernel == "cudnn":
        return fused.cudnn(q_btnh, k_bsgh, v_bsgh, mask_bts)
    return masked(q_btnh, k_bsgh, v_bsgh, mask_bts, scale=scale, cap=cap, drop=drop, rate=rate)


def triton_module(name: str) -> ModuleType:
    """A module of this folder with a kernel for "triton", imported when used, as later versions of
    JAX may not have Pallas' Triton backend. Raises: ConfigError without it.
    """
    try:
        return importlib.import_module(f"jvae.nn.{name}")
    except ImportError as error:
        raise ConfigError(
            f"attention=triton needs Pallas' Triton backend, which jax {jax.__version__} lacks; "
            "use cudnn or xla"
        ) from error


def _check_fused(
    kernel: str, rate: float, cap: float | None, seen_bts: Array | None, slots: Slots | None
) -> None:
    """Raises: ConfigError for a feature that the kernel lacks."""
    if rate > 0 and kernel not in fused.DROPPING:
        raise ConfigError(
            f"attention={kernel} does not support dropout of attention weights, but dropout is "
            f"{rate}; use "
            "attention=xla or triton, or dropout=0"
        )
    if cap is not None:
        raise ConfigError(f"attention={kernel} has no soft cap on its logits; use xla")
    if kernel == "cudnn":
        return
    if seen_bts is not None:
        raise ConfigError(f"attention={kernel} supports segments but no windows; use xla or cudnn")
    if kernel == "splash" and slots is not None and np.any(slots.owner_m == EVERYONE):
        raise ConfigError(
            "attention=splash cannot make a prefix visible to all segments; use xla, "
            "cudnn or triton"
        )


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
    """Reference implementation of `attend` with an arbitrary mask, True where a key is visible."""
    factor = q_btnh.shape[-1] ** -0.5 if scale is None else scale
    acc = accum_dtype(q_btnh.dtype)
    heads, kv_heads = q_btnh.shape[2], k_bsgh.shape[2]
    # A finite floor keeps queries without a visible key (padding) finite; they are never scored.
    # It is an addend, because a selected constant would be an array as large as the logits.
    hide_bts = jnp.where(mask_bts, 0.0, jnp.finfo(acc).min / 2).astype(acc)
    if heads == kv_heads:
        logits_bnts = jnp.einsum("btnh,bsnh->bnts", q_btnh, k_bsgh, preferred_element_type=acc)
        logits_bnts = soft_cap(logits_bnts * factor, cap)
        logits_bnts = logits_bnts + hide_bts[:, None]
        weight_bnts = dropout(drop, rate, jax.nn.softmax(logits_bnts, axis=-1))
        return jnp.einsum("bnts,bsnh->btnh", weight_bnts.astype(v_bsgh.dtype), v_bsgh)
    q_btgrh = by_group(q_btnh, kv_heads)
    logits_bgrts = jnp.einsum("btgrh,bsgh->bgrts", q_btgrh, k_bsgh, preferred_element_type=acc)
    logits_bgrts = soft_cap(logits_bgrts * factor, cap)
    logits_bgrts = logits_bgrts + hide_bts[:, None, None]
    weight_bgrts = dropout(drop, rate, jax.nn.softmax(logits_bgrts, axis=-1))
    mixed_btgrh = jnp.einsum("bgrts,bsgh->btgrh", weight_bgrts.astype(v_bsgh.dtype), v_bsgh)
    return mixed_btgrh.reshape(q_btnh.shape)


def by_group(q: Float[Array, "... n h"], kv_heads: int) -> Float[Array, "... g r h"]:
    """Reshapes query heads into groups that share a key and value head."""
    return q.reshape(*q.shape[:-2], kv_heads, -1, q.shape[-1])
