"""Noise on the encoder and decoder inputs, in training only; the scored tokens are unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.api import Batch, Side


def most_deleted(length: int, rate: float) -> Int[np.ndarray, "n"]:
    """For every length up to `length`, end included, the largest number of tokens to delete: one
    less than floor(`rate` * number of tokens before the end).
    """
    before_end = np.maximum(np.arange(length + 1) - 1, 0)
    return np.maximum(np.floor(before_end * rate).astype(np.int32) - 1, 0)


def delete_tokens(key_e: Key[Array, "e"], side: Side, rate: float, pad_id: int) -> Side:
    """Deletes random tokens of each example, but never its last one.

    The number is uniform from 0 to `most_deleted`, so the mean rate is about half of `rate`.
    Remaining tokens move up and their positions are renumbered; the freed slots become padding.

    Args:
      key_e: one key per example; draws do not depend on the packing.
      rate: from 0 to 1.
    Raises: ValueError for a rate outside this range.
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

    def by_token(value_e: Array) -> Array:
        return _by_token(value_e, side)

    last_bt = side.position_bt == by_token(tokens_bs.reshape(-1)) - 1
    open_bt = (side.segment_bt > 0) & ~last_bt
    order_bt = jnp.where(open_bt, _uniform(place_key_e, side), 2.0)
    same_bts = side.segment_bt[:, :, None] == side.segment_bt[:, None, :]
    earlier_bts = side.position_bt[:, :, None] > side.position_bt[:, None, :]
    lower_bts = order_bt[:, :, None] > order_bt[:, None, :]
    equal_bts = order_bt[:, :, None] == order_bt[:, None, :]
    rank_bt = jnp.sum(same_bts & (lower_bts | (equal_bts & earlier_bts)), axis=2)
    gone_bt = open_bt & (rank_bt < by_token(count_e))
    behind_bt = jnp.sum(same_bts & earlier_bts & gone_bt[:, None], axis=2)
    keep_bt = (side.segment_bt > 0) & ~gone_bt
    return Side(
        jnp.where(keep_bt, side.token_bt, pad_id),
        jnp.where(keep_bt, side.segment_bt, 0),
        jnp.where(keep_bt, side.position_bt - behind_bt, 0),
    )


def drop_words(key_e: Key[Array, "e"], batch: Batch, rate: float, drop_id: int) -> Batch:
    """Replaces each scored token that the decoder reads by `drop_id` with probability `rate`.

    Args:
      key_e: one key per example; draws do not depend on the packing.
      drop_id: id of the unknown token, or of padding if the tokenizer has no unknown token.
    Raises: ValueError for a rate outside 0 to 1.
    Source: Bowman et al. 2016, section 3.1.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate is {rate}; expected a share from 0 to 1")
    dropped_bt = batch.scored_bt & (_uniform(key_e, batch.dec) < rate)
    return batch._replace(noisy_bt=jnp.where(dropped_bt, drop_id, batch.dec.token_bt))


def _by_token(value_e: Array, side: Side) -> Array:
    """Broadcasts per-example values to tokens; undefined for padding."""
    rows = side.token_bt.shape[0]
    slot_bt = jnp.maximum(side.segment_bt - 1, 0)
    return jnp.take_along_axis(value_e.reshape(rows, -1), slot_bt, axis=1)


def _uniform(key_e: Key[Array, "e"], side: Side) -> Float[Array, "b t"]:
    """One number per token, from the key of its example and its position there."""
    draw = jax.vmap(jax.vmap(lambda k, place: jax.random.uniform(jax.random.fold_in(k, place))))
    return draw(_by_token(key_e, side), side.position_bt)
