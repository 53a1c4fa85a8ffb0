"""Keys and values of stepwise decoding: static caches that every token is written into.

    prompts <s> a | <s>, then cat | the       places    0     1    2    3    4    5
    example 0 of a layer, each head                   [slot, <s>,  a,  cat,  .,   .]
              position of its tokens                   -1     0    1    2
    example 1                                         [slot, <s>, (a), the,  .,   .]
                                                       -1     0         1

All examples write at one place, that of the step, whatever the lengths of their prompts: a slice of
the cache, where a place for each would be a scatter, which accelerators do one by one and in
layouts of their own. What lies behind a short prompt is passed over, as it has no position.

Heads lie outside of places, as the products of one new token per example want them: with places
outside, every step would transpose all it reads. Layers are apart for a like reason: a slice of
a stack of them would be copied before a product reads it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.nn.attention import by_group
from jvae.nn.layers import accum_dtype
from jvae.nn.xent import soft_cap

SLOT = -1  # position of latent slots, which all tokens of their example see
NOTHING = 2**30  # position of places without a token: behind all there are


class KvCache(NamedTuple):
    """Keys and values of one layer: the latent slots first, then one place per token."""

    key_enmh: Float[Array, "e n m h"]
    value_enmh: Float[Array, "e n m h"]


class Caches(NamedTuple):
    """What all layers keep, and what they share."""

    layers: tuple[KvCache, ...]
    position_em: Int[Array, "e m"]  # of the token at each place; SLOT or NOTHING
    place: Int[Array, ""]  # where the next token goes


def filled(
    key_lemnh: Float[Array, "l e m n h"],
    value_lemnh: Float[Array, "l e m n h"],
    slots: int,
    length_e: Int[Array, "e"],
    room: int,
) -> Caches:
    """The caches of slots and right-padded prompts, with room for so many more tokens."""
    examples, places = key_lemnh.shape[1:3]
    layers = tuple(
        KvCache(*(x.swapaxes(1, 2) for x in layer))
        for layer in zip(key_lemnh, value_lemnh, strict=True)
    )
    position_em = jnp.broadcast_to(jnp.arange(places, dtype=jnp.int32) - slots, (examples, places))
    position_em = jnp.where(
        position_em < length_e[:, None], jnp.maximum(position_em, SLOT), NOTHING
    )
    return grown(Caches(layers, position_em, jnp.int32(places)), room)


def grown(caches: Caches, more: int) -> Caches:
    """Room for so many more tokens."""
    places = ((0, 0), (0, 0), (0, more), (0, 0))
    layers = tuple(KvCache(*(jnp.pad(x, places) for x in layer)) for layer in caches.layers)
    position_em = jnp.pad(caches.position_em, ((0, 0), (0, more)), constant_values=NOTHING)
    return Caches(layers, position_em, caches.place)


def placed(caches: Caches, position_e: Int[Array, "e"]) -> Int[Array, "e m"]:
    """The positions of all places once each example has a token of that position more."""
    return jax.lax.dynamic_update_slice(
        caches.position_em, position_e[:, None], (jnp.int32(0), caches.place)
    )


def put(
    cache: KvCache,
    place: Int[Array, ""],
    key_enh: Float[Array, "e n h"],
    value_enh: Float[Array, "e n h"],
) -> KvCache:
    """The cache of a layer with one token per example written at a place."""
    zero = jnp.int32(0)
    at = (zero, zero, place, zero)
    return KvCache(
        jax.lax.dynamic_update_slice(cache.key_enmh, key_enh[:, :, None], at),
        jax.lax.dynamic_update_slice(cache.value_enmh, value_enh[:, :, None], at),
    )


def look_up(
    q_enh: Float[Array, "e n h"],
    cache: KvCache,
    visible_em: Bool[Array, "e m"],
    *,
    scale: float,
    cap: float | None = None,
    bias_enm: Float[Array, "#e n m"] | None = None,
) -> Float[Array, "e n h"]:
    """Attention of one new token per example over the visible places, logits times `scale` plus a
    bias; logits and softmax in float32 or wider. Caches may have fewer heads than queries.
    """
    acc, kv_heads = accum_dtype(q_enh.dtype), cache.key_enmh.shape[1]
    grouped = q_enh.shape[1] != kv_heads
    if grouped:
        q_egrh = by_group(q_enh, kv_heads)
        logits_enm = jnp.einsum(
            "egrh,egmh->egrm", q_egrh, cache.key_enmh, preferred_element_type=acc
        )
        logits_enm = logits_enm.reshape(*q_enh.shape[:2], -1)
    else:
        logits_enm = jnp.einsum("enh,enmh->enm", q_enh, cache.key_enmh, preferred_element_type=acc)
    logits_enm = soft_cap(logits_enm * scale, cap)
    if bias_enm is not None:
        logits_enm = logits_enm + bias_enm.astype(logits_enm.dtype)
    floor = jnp.finfo(logits_enm.dtype).min / 2
    logits_enm = jnp.where(visible_em[:, None], logits_enm, floor)
    weight_enm = jax.nn.softmax(logits_enm, axis=-1).astype(cache.value_enmh.dtype)
    if grouped:
        weight_egrm = weight_enm.reshape(weight_enm.shape[0], kv_heads, -1, weight_enm.shape[2])
        mixed_egrh = jnp.einsum("egrm,egmh->egrh", weight_egrm, cache.value_enmh)
        return mixed_egrh.reshape(q_enh.shape)
    return jnp.einsum("enm,enmh->enh", weight_enm, cache.value_enmh)
