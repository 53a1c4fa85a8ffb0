"""Log-probabilities of target tokens without materialising the logits of a whole batch.

The vocabulary is processed in chunks with a running log-sum-exp; each chunk is rematerialised in
the backward pass. It is plain JAX throughout: gradients with respect to the hidden states alone do
not compute those of the output weights, and second derivatives (learned Langevin steps) and forward
mode work.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from jvae.nn.layers import accum_dtype

Table = Float[Array, "v d"] | tuple[Float[Array, "v _"], ...]  # columns in blocks
TOP = "xent_top"  # name of the running maximum among values that recomputation keeps
MULTIPLE = 128  # chunk widths are multiples of this; others are padded by a copy


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or x if `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def mask_padded_vocab(logits: Float[Array, "... v"], vocab: int) -> Float[Array, "... v"]:
    """Sets columns at and past `vocab` to -inf; they only pad the table for even sharding."""
    column = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.where(column < vocab, logits, -jnp.inf)


@jax.custom_jvp
def _scores(
    hidden_btd: Float[Array, "b t d"], part_vd: Float[Array, "v d"]
) -> Float[Array, "b t v"]:
    """hidden . part in float32 or wider; derivatives multiply in the dtype of the operands.

    The scores' gradient would otherwise be float32, and so would both of its large products.
    """
    acc = accum_dtype(hidden_btd.dtype)
    return jnp.einsum("btd,vd->btv", hidden_btd, part_vd, preferred_element_type=acc)


@functools.partial(_scores.defjvp, symbolic_zeros=True)
def _scores_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (hidden_btd, part_vd), (d_hidden_btd, d_part_vd) = primals, tangents
    score_btv = _scores(hidden_btd, part_vd)
    change_btv = jnp.zeros(score_btv.shape, hidden_btd.dtype)
    if not isinstance(d_hidden_btd, SymbolicZero):
        change_btv += jnp.einsum("btd,vd->btv", d_hidden_btd, part_vd)
    if not isinstance(d_part_vd, SymbolicZero):
        change_btv += jnp.einsum("btd,vd->btv", hidden_btd, d_part_vd)
    return score_btv, change_btv.astype(score_btv.dtype)


def _blocks(hidden: Array, table: Table) -> list[tuple[Array, Float[Array, "v _"]]]:
    """Each block of the table's columns, with the states that it multiplies."""
    hidden, table = jax.tree.map(jnp.asarray, (hidden, table))  # of NumPy, too
    if not isinstance(table, tuple):
        return [(hidden, table)]
    ends = [0, *itertools.accumulate(block_vd.shape[1] for block_vd in table)]
    return [
        (hidden[..., begin:end], block_vd)
        for begin, end, block_vd in zip(ends, ends[1:], table, strict=False)
    ]


def logits(
    hidden: Float[Array, "... d"],
    table: Table,
    vocab: int,
    bias_v: Float[Array, "v"] | None = None,
    cap: float | None = None,
) -> Float[Array, "... v"]:
    """Scores over the padded vocabulary in float32 or wider, with an optional soft cap.

    Padded columns are -inf. For `table` see `token_log_prob`.
    """
    acc = accum_dtype(hidden.dtype)
    out = functools.reduce(
        jnp.add,
        [
            jnp.einsum(
                "...d,vd->...v", part, block_vd.astype(part.dtype), preferred_element_type=acc
            )
            for part, block_vd in _blocks(hidden, table)
        ],
    )
    if bias_v is not None:
        out = out + bias_v.astype(out.dtype).reshape((1,) * (out.ndim - 1) + (-1,))
    return mask_padded_vocab(soft_cap(out, cap), vocab)


def token_log_prob(
    hidden_btd: Float[Array, "b t d"],
    table: Table,
    target_bt: Int[Array, "b t"],
    vocab: int,
    chunk: int,
    bias_v: Float[Array, "v"] | None = None,
    cap: float | None = None,
) -> Float[Array, "b t"]:
    """log softmax(cap(hidden . table + bias))[target] in nats, float32 or wider.

    Args:
      table: output embedding (V, D), or blocks of its columns, of which each has a gradient only if
        it is trained; rows at and past `vocab` are ignored.
      chunk: vocabulary columns computed at a time; a value of at least the table's rows disables
        chunking.
      cap: see `soft_cap`; None for no cap.
    """
    blocks = _blocks(hidden_btd, table)
    count = blocks[0][1].shape[0]
    if chunk >= count:
        log_prob = jax.nn.log_softmax(logits(hidden_btd, table, vocab, bias_v, cap), axis=-1)
        return jnp.take_along_axis(log_prob, target_bt[..., None], axis=-1)[..., 0]

    acc = accum_dtype(hidden_btd.dtype)
    # Rows are taken before the cast, because GPUs add up gradients in 16 bits very slowly.
    rows_of_targets = [
        jnp.take(block_vd, target_bt, axis=0, mode="clip").astype(hidden_btd.dtype)
        for _, block_vd in blocks
    ]
    chunks = -(-count // chunk)
    rows = -(-count // chunks)
    if rows > MULTIPLE:
        rows = -(-rows // MULTIPLE) * MULTIPLE

    def in_chunks(block_vd: Array) -> Float[Array, "c v d"]:
        block_vd = jnp.pad(block_vd.astype(hidden_btd.dtype), ((0, chunks * rows - count), (0, 0)))
        return block_vd.reshape(chunks, rows, -1)

    bias_v = jnp.zeros(count, acc) if bias_v is None else bias_v.astype(acc)
    bias_cv = jnp.pad(bias_v, (0, chunks * rows - bias_v.shape[0])).reshape(chunks, rows)
    # Padded columns are hidden by an addend; a selected constant would be an array of all scores.
    floor = jnp.finfo(acc).min / 2
    hide_cv = jnp.where(jnp.arange(chunks * rows) < vocab, 0.0, floor).astype(acc)
    hide_cv = hide_cv.reshape(chunks, rows)

    # Backward computes the scores of a chunk again, but does not search their maximum again.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(TOP))
    def body(carry, inputs):
        peak_bt, total_bt = carry
        parts, part_v, hide_v = inputs
        score = part_v[None, None]
        for (part_btd, _), part_vd in zip(blocks, parts, strict=True):
            score = score + _scores(part_btd, part_vd)
        score = soft_cap(score, cap)
        score = score + hide_v[None, None]
        # The maximum only stabilises the exponentials; neither the result nor the gradient depends
        # on it.
        top_bt = jax.lax.stop_gradient(jnp.maximum(peak_bt, jnp.max(score, axis=-1)))
        top_bt = checkpoint_name(top_bt, TOP)
        total_bt = total_bt * jnp.exp(peak_bt - top_bt)
        total_bt = total_bt + jnp.sum(jnp.exp(score - top_bt[..., None]), axis=-1)
        return (top_bt, total_bt), None

    start = (jnp.full(target_bt.shape, floor, acc), jnp.zeros(target_bt.shape, acc))
    parts = [in_chunks(block_vd) for _, block_vd in blocks]
    (peak_bt, total_bt), _ = jax.lax.scan(body, start, (parts, bias_cv, hide_cv))
    chosen_bt = jnp.take(bias_v, target_bt, axis=0, mode="clip")
    for (part_btd, _), row_btd in zip(blocks, rows_of_targets, strict=True):
        product_bt = jnp.einsum("btd,btd->bt", part_btd, row_btd, preferred_element_type=acc)
        chosen_bt = chosen_bt + product_bt
    return soft_cap(chosen_bt, cap) - peak_bt - jnp.log(total_bt)
