"""Cross-attention of decoder layers to external states: keys, values and masks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.nn import lora
from jvae.nn.points import CrossKv, Points

AttendCross = Callable[[Array], Array]  # queries (B, T, N, H) to mixed values (B, T, N, H)


def key_values(own_l: Any, state_bsd: Float[Array, "b s d"]) -> CrossKv:
    """Keys and values of every layer, which depend on the states alone.

    Args:
      own_l: the stacked projection `cross/kv`, optionally with low-rank additions.
    """
    kv = jnp.einsum("bsd,ldcnh->clbsnh", state_bsd, own_l["kernel"].astype(state_bsd.dtype))
    if lora.NAME in own_l:
        add = jax.vmap(lambda pairs: lora.addend(pairs, state_bsd, 1, "kv"))(own_l[lora.NAME])
        kv = kv + jnp.moveaxis(add, 3, 0)
    if "bias" in own_l:
        bias_clnh = jnp.moveaxis(own_l["bias"].astype(kv.dtype), 1, 0)
        kv = kv + bias_clnh[:, :, None, None]
    return CrossKv(kv[0], kv[1])


def seen_by_rows(points: Points, query_bt: Int[Array, "b t"]) -> Bool[Array, "b t s"] | None:
    """Cross-attention mask of packed rows, by segment; None without states."""
    if points.cross is None:
        return None
    assert points.cross_owner_bs is not None  # set whenever there are states
    return query_bt[:, :, None] == points.cross_owner_bs[:, None]


def seen_by_examples(points: Points) -> Bool[Array, "e 1 s"] | None:
    """Cross-attention mask for decoding, per example; None without states."""
    if points.cross is None:
        return None
    shape = points.cross.key_lbsgh.shape[1:3]
    if points.cross_owner_bs is None:
        return jnp.ones(shape, bool)[:, None]
    return jnp.broadcast_to(points.cross_owner_bs == 1, shape)[:, None]
