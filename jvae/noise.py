"""Noise on what the encoder reads, in training alone; what is scored stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.api import Side


def most_deleted(length: int, rate: float) -> Int[np.ndarray, "n"]:
    """For every number of tokens up to `length`, its end counted, how many may be deleted: one less
    than the whole part of `rate` times the tokens before the end.
    """
    before_end = np.maximum(np.arange(length + 1) - 1, 0)
    return np.maximum(np.floor(before_end * rate).astype(np.int32) - 1, 0)


def delete_tokens(key_e: Key[Array, "e"], side: Side, rate: float, pad_id: int) -> Side:
    """The side with tokens of each example deleted at random, never its last one.

    How many is uniform from 0 to `most_deleted`, so the mean rate is about half of `rate`. Deleted
    places become padding, the positions behind them close up.

    Args:
      key_e: one key per example; draws do not depend on the packing.
      rate: from 0 to 1.
    Raises: ValueError for another rate.
    Source: Park & Lee 2021, the released code. Deviation: that code then swaps ids and mask.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate is {rate}; expected a share from 0 to 1")
    rows, length = side.token_bt.shape
    slots = key_e.shape[0] // rows
    number_bs = jnp.arange(1, slots + 1)[None, None]
    tokens_bs = jnp.sum(side.segment_bt[..., None] == number_bs, axis=1)
    most_e = jnp.asarray(most_deleted(length, rate))[tokens_bs].reshape(-1)
    count_key_e, place_key_e = (
        jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(key_e) for i in (0, 1)
    )
    count_e = jax.vmap(lambda k, most: jax.random.randint(k, (), 0, most + 1))(count_key_e, most_e)

    slot_bt = jnp.maximum(side.segment_bt - 1, 0)

    def own(value_e: Array) -> Array:
        return jnp.take_along_axis(value_e.reshape(rows, slots), slot_bt, axis=1)

    last_bt = side.position_bt == own(tokens_bs.reshape(-1)) - 1
    open_bt = (side.segment_bt > 0) & ~last_bt
    order_bt: Float[Array, "b t"] = jax.vmap(
        jax.vmap(lambda k, place: jax.random.uniform(jax.random.fold_in(k, place)))
    )(own(place_key_e), side.position_bt)
    order_bt = jnp.where(open_bt, order_bt, 2.0)
    same_bts = side.segment_bt[:, :, None] == side.segment_bt[:, None, :]
    earlier_bts = side.position_bt[:, :, None] > side.position_bt[:, None, :]
    lower_bts = order_bt[:, :, None] > order_bt[:, None, :]
    equal_bts = order_bt[:, :, None] == order_bt[:, None, :]
    rank_bt = jnp.sum(same_bts & (lower_bts | (equal_bts & earlier_bts)), axis=2)
    gone_bt = open_bt & (rank_bt < own(count_e))
    behind_bt = jnp.sum(same_bts & earlier_bts & gone_bt[:, None], axis=2)
    keep_bt = (side.segment_bt > 0) & ~gone_bt
    return Side(
        jnp.where(keep_bt, side.token_bt, pad_id),
        jnp.where(keep_bt, side.segment_bt, 0),
        jnp.where(keep_bt, side.position_bt - behind_bt, 0),
    )
