"""Key-value caches for stepwise decoding, with static shapes.

    prompts <s> a | <s>, then cat | the       places    0     1    2    3    4    5
    example 0 of a layer, each head                   [slot, <s>,  a,  cat,  .,   .]
              position of its tokens                   -1     0    1    2
    example 1                                         [slot, <s>, (a), the,  .,   .]
                                                       -1     0         1

All examples write at the same cache index, that of the step, regardless of prompt length. This is a
slice update; a separate index per example would need a scatter, which accelerators run serially and
in a different layout. Places after a short prompt are masked, as they have no position.

The head axis comes before the place axis, as the products of one new token per example need it; the
other order would transpose the whole cache in every step. Layers are separate arrays for a similar
reason: slicing a stacked array would copy the slice before each product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.nn.attention import by_group, triton_module
from jvae.nn.layers import accum_dtype
from jvae.nn.xent import soft_cap
from jvae.parallel.mesh import in_force

SLOT = -1  # position of latent slots, which are visible to all tokens of their example
NOTHING = 2**30  # position of empty places: larger than any real position


class KvCache(NamedTuple):
    """Keys and values of one layer: latent slots first, then one place per token."""

    key_enmh: Float[Array, "e n m h"]
    value_enmh: Float[Array, "e n m h"]


class Caches(NamedTuple):
    """The caches of all layers, with the positions that they share."""

    layers: tuple[KvCache, ...]
    position_em: Int[Array, "e m"]  # position of the token at each place, or SLOT or NOTHING
    place: Int[Array, ""]  # cache index of the next token


def filled(
    key_lemnh: Float[Array, "l e m n h"],
    value_lemnh: Float[Array, "l e m n h"],
    slots: int,
    length_e: Int[Array, "e"],
    room: int,
) -> Caches:
    """Caches of slots and right-padded prompts, with capacity for `room` more tokens."""
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
    """Extends the caches by `more` tokens."""
    places = ((0, 0), (0, 0), (0, more), (0, 0))
    layers = tuple(KvCache(*(jnp.pad(x, places) for x in layer)) for layer in caches.layers)
    position_em = jnp.pad(caches.position_em, ((0, 0), (0, more)), constant_values=NOTHING)
    return Caches(layers, position_em, caches.place)


def placed(caches: Caches, position_e: Int[Array, "e"]) -> Int[Array, "e m"]:
    """The positions of all places after adding one token per example at `position_e`."""
    return jax.lax.dynamic_update_slice(
        caches.position_em, position_e[:, None], (jnp.int32(0), caches.place)
    )


def put(
    cache: KvCache,
    place: Int[Array, ""],
    key_enh: Float[Array, "e n h"],
    value_enh: Float[Array, "e n h"],
) -> KvCache:
    """Writes one token per example to a layer's cache at the given place."""
    zero = jnp.int32(0)
    at = (zero, zero, place, zero)
    return KvCache(
        jax.lax.dynamic_update_slice(cache.key_enmh, key_enh[:, :, None], at),
        jax.lax.dynamic_update_slice(cache.value_enmh, value_enh[:, :, None], at),
    )


def step(
    cache: KvCache,
    place: Int[Array, ""],
    q_enh: Float[Array, "e n h"],
    key_egh: Float[Array, "e g h"],
    value_egh: Float[Array, "e g h"],
    visible_em: Bool[Array, "e m"],
    *,
    scale: float,
    cap: float | None = None,
    bias_enm: Float[Array, "#e n m"] | None = None,
    kernel: str = "xla",
) -> tuple[Float[Array, "e n h"], KvCache]:
    """Adds one token per example to a layer's cache, and attends from it to the visible places.

    Args:
      visible_em: includes the new token, at `place`.
      kernel: "triton" for `jvae.nn.cache_kernel`, where no bias is added and the partitioner does
        not shard the caches.
    Returns: see `look_up`, and the new cache.
    """
    if kernel == "triton" and bias_enm is None and in_force() is None:
        run = triton_module("cache_kernel").step
        mixed_enh, keys, values = run(
            *(q_enh, key_egh, value_egh, *cache, place, visible_em), scale=scale, cap=cap
        )
        return mixed_enh, KvCache(keys, values)
    cache = put(cache, place, key_egh, value_egh)
    return look_up(q_enh, cache, visible_em, scale=scale, cap=cap, bias_enm=bias_enm), cache


def look_up(
    q_enh: Float[Array, "e n h"],
    cache: KvCache,
    visible_em: Bool[Array, "e m"],
    *,
    scale: float,
    cap: float | None = None,
    bias_enm: Float[Array, "#e n m"] | None = None,
) -> Float[Array, "e n h"]:
    """Attention of one new token per example over the visible places of a cache.

    Logits are multiplied by `scale`, then the bias is added; logits and softmax are in float32 or
    wider. Caches may have fewer heads than queries.
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
