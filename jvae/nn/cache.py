"""Keys and values of stepwise decoding: static caches, one per layer, written in place.

    example 0   head 0   [slot, <s>, a, cat, ., .]    one place per latent slot and token
                head 1   [slot, <s>, a, cat, ., .]

Heads lie outside of places, as the products of one new token per example want them: with places
outside, every step would transpose all it reads. Layers are apart for a like reason: a slice of
a stack of them would be copied before a product reads it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.nn.layers import wide


class KvCache(NamedTuple):
    """Keys and values of one layer: the M latent slots first, then one place per token."""

    key_enmh: Float[Array, "e n m h"]
    value_enmh: Float[Array, "e n m h"]


Caches = tuple[KvCache, ...]  # of all layers


def filled(
    key_lemnh: Float[Array, "l e m n h"], value_lemnh: Float[Array, "l e m n h"], room: int
) -> Caches:
    """The caches of a prompt, with room for so many more tokens."""
    prompt = tuple(
        KvCache(*(x.swapaxes(1, 2) for x in layer))
        for layer in zip(key_lemnh, value_lemnh, strict=True)
    )
    return grown(prompt, room)[0]


def grown(tree: Any, more: int) -> tuple[Any, int]:
    """A tree that holds caches, with room in each for so many more tokens, and their places."""
    found = [0]

    def pad(leaf: Any) -> Any:
        if not isinstance(leaf, KvCache):
            return leaf
        found.append(leaf.key_enmh.shape[2] + more)
        return KvCache(*(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in leaf))

    tree = jax.tree.map(pad, tree, is_leaf=lambda leaf: isinstance(leaf, KvCache))
    return tree, max(found)


def places(caches: Caches) -> Int[Array, "m"]:
    """The numbers of all places."""
    return jnp.arange(caches[0].key_enmh.shape[2])


def put(
    cache: KvCache,
    place_e: Int[Array, "e"],
    key_enh: Float[Array, "e n h"],
    value_enh: Float[Array, "e n h"],
) -> KvCache:
    """The cache with one token per example written at its place."""
    at = (jnp.arange(place_e.shape[0]), slice(None), place_e)
    return KvCache(cache.key_enmh.at[at].set(key_enh), cache.value_enmh.at[at].set(value_enh))


def look_up(
    q_enh: Float[Array, "e n h"],
    cache: KvCache,
    visible_em: Bool[Array, "e m"],
    *,
    scale: float,
    bias_enm: Float[Array, "#e n m"] | None = None,
) -> Float[Array, "e n h"]:
    """Attention of one new token per example over the visible places, logits times `scale` plus a
    bias; logits and softmax in float32 or wider.
    """
    logits_enm = jnp.einsum(
        "enh,enmh->enm", q_enh, cache.key_enmh, preferred_element_type=wide(q_enh.dtype)
    )
    logits_enm = logits_enm * scale
    if bias_enm is not None:
        logits_enm = logits_enm + bias_enm.astype(logits_enm.dtype)
    floor = jnp.finfo(logits_enm.dtype).min / 2
    logits_enm = jnp.where(visible_em[:, None], logits_enm, floor)
    weight_enm = jax.nn.softmax(logits_enm, axis=-1).astype(cache.value_enmh.dtype)
    return jnp.einsum("enm,enmh->enh", weight_enm, cache.value_enmh)
