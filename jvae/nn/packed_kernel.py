"""Attention within the segments of packed rows as Triton kernels, for GPUs.

    for each row, head, block of queries:   the slots, then key blocks that share a segment

Key blocks of other segments are neither read nor multiplied, so the cost follows the sentences and
not the row. Weights are dropped inside the kernels by a hash of (seed, row, head, query, key); the
backward kernels compute weights and hash again. Online softmax and the recomputing backward pass:
Dao (2023), "FlashAttention-2", algorithms 1 and 2.

It has no second derivative. Pallas' Triton backend is deprecated since JAX 0.11, which warns.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from jvae.nn.attention import EVERYONE
from jvae.nn.layers import accum_dtype
from jvae.parallel.mesh import ROWS, TENSOR, in_force

BLOCK = 32  # queries and keys per block
LEAST = 16  # the smallest side of a block that Triton multiplies
NOBODY = -2  # owner of the slots that fill a block
OUTSIDE = -1  # segment past the end of a row
HIDDEN = -1e30  # logit of a hidden key
WARPS = 4

Slots = tuple[Float[Array, "b m g h"], Float[Array, "b m g h"], Int[Array, "m"]]


class _Plan(NamedTuple):
    """What is known when a kernel is compiled."""

    tokens: int
    slots: int  # 0: none
    groups: int  # query heads per key head
    heads: int  # query heads on all devices
    scale: float
    causal: bool
    rate: float  # of dropout

    @property
    def blocks(self) -> int:
        return -(-self.tokens // BLOCK)

    @property
    def slot_block(self) -> int:
        return max(LEAST, pl.next_power_of_2(self.slots))


# --------------------------------------------------------------------------------------------------
# Dropout.


def keep_mask(
    seeds: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    line: UInt32[Array, ""],
    query_t: UInt32[Array, "t"],
    key_s: UInt32[Array, "s"],
    keys: int,
    rate: float,
) -> Bool[Array, "t s"]:
    """True for attention weights to keep, each with probability 1 - rate.

    Args:
      line: row times the number of heads plus head.
      query_t, key_s: positions in the row, and among slots and tokens.
      keys: number of slots and tokens.
    """
    start = _mixed(line ^ seeds[1])
    count = (start + query_t[:, None]) * jnp.uint32(keys) + key_s[None, :]
    return _mixed(_mixed(count) ^ seeds[0]) >= jnp.uint32(round(rate * 2**32))


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the 32-bit numbers that looks random (Wellons' `lowbias32`)."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


# --------------------------------------------------------------------------------------------------
# Kernels. References to a row's tokens are (T, H), or (T, R, H) with the R queries' heads of a key
# head; those to slots are (M, H).


class _Row(NamedTuple):
    """References to the inputs of every kernel."""

    seed: Any  # (2,)
    origin: Any  # (2,) first row and head of this device
    first: Any  # (blocks,) first and last block that shares a segment with a block
    last: Any
    segment: Any  # (T,)
    key_segment: Any  # (T,)
    q: Any
    k: Any
    v: Any
    slot_key: Any = None
    slot_value: Any = None
    owner: Any = None  # (M,)


class _Keys(NamedTuple):
    """A block of keys and values."""

    k: Array
    v: Array
    segment: Array  # or owner
    place: Array  # among slots and tokens
    token: Array | None  # position in the row; None for slots


def _spots(start: Any, size: int) -> Array:
    return start + jax.lax.broadcasted_iota(jnp.int32, (size,), 0)


def _rows(ref: Any, start: Any, size: int, limit: int, head: Any = None) -> Array:
    """(size, H) rows of a reference, which may have several heads; zeros past its end."""
    inside = _spots(start, size) < limit
    part = ref.at[pl.ds(start, size), :] if head is None else ref.at[pl.ds(start, size), head, :]
    return plgpu.load(part, mask=inside[:, None], other=0.0)


def _numbers(ref: Any, start: Any, size: int, limit: int, other: Any, head: Any = None) -> Array:
    """(size,) numbers of a reference, which may have several heads; `other` past its end."""
    inside = _spots(start, size) < limit
    part = ref.at[pl.ds(start, size)] if head is None else ref.at[head, pl.ds(start, size)]
    return plgpu.load(part, mask=inside, other=other)


def _put(ref: Any, start: Any, size: int, limit: int, value: Array) -> None:
    """Writes rows or numbers to a reference, except past its end."""
    inside = _spots(start, size) < limit
    start = jnp.asarray(
        start, jnp.result_type(int)
    )  # like the other indices, with 64-bit types too
    value = value.astype(ref.dtype)
    if value.ndim == 1:
        plgpu.store(ref.at[pl.ds(start, size)], value, mask=inside)
    else:
        plgpu.store(ref.at[pl.ds(start, size), :], value, mask=inside[:, None])


def _token_keys(plan: _Plan, row: _Row, block: Any) -> _Keys:
    start, limit = block * BLOCK, plan.tokens
    k, v = (_rows(ref, start, BLOCK, limit) for ref in (row.k, row.v))
    token = _spots(start, BLOCK)
    segment = _numbers(row.key_segment, start, BLOCK, limit, NOBODY)
    return _Keys(k, v, segment, token + plan.slots, token)


def _slot_keys(plan: _Plan, row: _Row) -> _Keys:
    size, limit = plan.slot_block, plan.slots
    k, v = (_rows(ref, jnp.int32(0), size, limit) for ref in (row.slot_key, row.slot_value))
    return _Keys(
        k, v, _numbers(row.owner, jnp.int32(0), size, limit, NOBODY), _spots(0, size), None
    )


def _product(a: Array, b: Array, along: tuple[int, int]) -> Array:
    """The product of two blocks, contracted along one axis of each, in float32 or wider."""
    dims = (((along[0],), (along[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=accum_dtype(a.dtype))


def _logits(
    plan: _Plan, q: Array, segment: Array, token: Array, keys: _Keys
) -> tuple[Array, Array]:
    """Scaled logits of a block of queries and keys, and which of them are visible."""
    logit = _product(q, keys.k, (1, 1)) * plan.scale
    seen = segment[:, None] == keys.segment[None, :]
    if keys.token is None:
        seen = seen | (keys.segment == EVERYONE)[None, :]
    elif plan.causal:
        seen = seen & (token[:, None] >= keys.token[None, :])
    return jnp.where(seen, logit, HIDDEN), seen


def _line(plan: _Plan, row: _Row, head: Any) -> Array:
    """The number of this row and head among all devices."""
    line = (row.origin[0] + pl.program_id(0)) * plan.heads + row.origin[1] + head
    return line.astype(jnp.uint32)


def _dropped(plan: _Plan, row: _Row, line: Array, token: Array, keys: _Keys, x: Array) -> Array:
    """Zeros what dropout removes, and divides the rest by the share that is kept."""
    if plan.rate == 0.0:
        return x
    places = (token.astype(jnp.uint32), keys.place.astype(jnp.uint32))
    keep = keep_mask((row.seed[0], row.seed[1]), line, *places, plan.slots + plan.tokens, plan.rate)
    return jnp.where(keep, x / (1.0 - plan.rate), 0.0)


def _over_keys(plan: _Plan, row: _Row, block: Any, add: Callable[[_Keys, Any], Any], start: Any):
    """Folds `add` over the slots and the key blocks that a block of queries sees."""
    if plan.slots:
        start = add(_slot_keys(plan, row), start)
    last = jnp.minimum(row.last[block], block) if plan.causal else row.last[block]
    return jax.lax.fori_loop(
        row.first[block], last + 1, lambda j, so_far: add(_token_keys(plan, row, j), so_far), start
    )


def _forward_kernel(plan: _Plan, row: _Row, mixed_ref: Any, log_total_ref: Any) -> None:
    line, block = _line(plan, row, pl.program_id(1)), pl.program_id(2)
    start = block * BLOCK
    q = _rows(row.q, start, BLOCK, plan.tokens)
    segment = _numbers(row.segment, start, BLOCK, plan.tokens, OUTSIDE)
    token = _spots(start, BLOCK)
    acc = accum_dtype(q.dtype)

    def add(keys: _Keys, so_far: Any) -> Any:
        top, total, mixed = so_far
        logit, seen = _logits(plan, q, segment, token, keys)
        new_top = jnp.maximum(top, jnp.max(logit, axis=1))
        weight = jnp.where(seen, jnp.exp(logit - new_top[:, None]), 0.0)
        shrink = jnp.exp(top - new_top)
        total = total * shrink + jnp.sum(weight, axis=1)
        weight = _dropped(plan, row, line, token, keys, weight).astype(q.dtype)
        return new_top, total, mixed * shrink[:, None] + _product(weight, keys.v, (1, 0))

    zeros = jnp.zeros((BLOCK,), acc)
    so_far = (zeros + HIDDEN, zeros, jnp.zeros(q.shape, acc))
    top, total, mixed = _over_keys(plan, row, block, add, so_far)
    total = jnp.where(total == 0.0, 1.0, total)  # queries past the end of the row
    _put(mixed_ref, start, BLOCK, plan.tokens, mixed / total[:, None])
    _put(log_total_ref, start, BLOCK, plan.tokens, top + jnp.log(total))


def _query_kernel(
    plan: _Plan, row: _Row, d_mixed_ref: Any, log_total_ref: Any, lean_ref: Any, dq_ref: Any
) -> None:
    """Gradients of a block of queries."""
    line, block = _line(plan, row, pl.program_id(1)), pl.program_id(2)
    start, limit = block * BLOCK, plan.tokens
    q, d_mixed = (_rows(ref, start, BLOCK, limit) for ref in (row.q, d_mixed_ref))
    segment = _numbers(row.segment, start, BLOCK, limit, OUTSIDE)
    log_total, lean = (_numbers(ref, start, BLOCK, limit, 0.0) for ref in (log_total_ref, lean_ref))
    token = _spots(start, BLOCK)

    def add(keys: _Keys, dq: Array) -> Array:
        logit, seen = _logits(plan, q, segment, token, keys)
        weight = jnp.where(seen, jnp.exp(logit - log_total[:, None]), 0.0)
        d_weight = _product(d_mixed, keys.v, (1, 1))
        d_weight = _dropped(plan, row, line, token, keys, d_weight)
        d_logit = (weight * (d_weight - lean[:, None])).astype(q.dtype)
        return dq + _product(d_logit, keys.k, (1, 0)) * plan.scale

    dq = _over_keys(plan, row, block, add, jnp.zeros(q.shape, accum_dtype(q.dtype)))
    _put(dq_ref, start, BLOCK, limit, dq)


def _key_kernel(
    of_slots: bool,
    plan: _Plan,
    row: _Row,
    d_mixed_ref: Any,
    log_total_ref: Any,
    lean_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
) -> None:
    """Gradients of a block of keys and values, or of the slots."""
    block, limit = pl.program_id(2), plan.tokens
    if of_slots:
        keys, first, last = _slot_keys(plan, row), 0, plan.blocks - 1
    else:
        keys, first, last = _token_keys(plan, row, block), row.first[block], row.last[block]
        first = jnp.maximum(first, block) if plan.causal else first
    acc = accum_dtype(keys.k.dtype)
    so_far = (jnp.zeros(keys.k.shape, acc), jnp.zeros(keys.k.shape, acc))
    for number in range(plan.groups):
        group = jnp.int32(number)
        line = _line(plan, row, pl.program_id(1) * plan.groups + group)

        def add(i: Any, so_far: Any, group: Array = group, line: Array = line) -> Any:
            dk, dv = so_far
            start = i * BLOCK
            q, d_mixed = (_rows(ref, start, BLOCK, limit, group) for ref in (row.q, d_mixed_ref))
            segment = _numbers(row.segment, start, BLOCK, limit, OUTSIDE)
            log_total, lean = (
                _numbers(ref, start, BLOCK, limit, 0.0, group) for ref in (log_total_ref, lean_ref)
            )
            token = _spots(start, BLOCK)
            logit, seen = _logits(plan, q, segment, token, keys)
            weight = jnp.where(seen, jnp.exp(logit - log_total[:, None]), 0.0)
            kept = _dropped(plan, row, line, token, keys, weight).astype(q.dtype)
            dv = dv + _product(kept, d_mixed, (0, 0))
            d_weight = _product(d_mixed, keys.v, (1, 1))
            d_weight = _dropped(plan, row, line, token, keys, d_weight)
            d_logit = (weight * (d_weight - lean[:, None])).astype(q.dtype)
            return dk + _product(d_logit, q, (0, 0)) * plan.scale, dv

        so_far = jax.lax.fori_loop(first, last + 1, add, so_far)
    size, limit = (plan.slot_block, plan.slots) if of_slots else (BLOCK, plan.tokens)
    for ref, gradient in zip((dk_ref, dv_ref), so_far, strict=True):
        _put(ref, block * BLOCK, size, limit, gradient)  # slots are one block


# --------------------------------------------------------------------------------------------------
# Calls.


def _blocks_in_reach(
    plan: _Plan, segment_bt: Int[Array, "b t"], key_segment_bt: Int[Array, "b t"]
) -> tuple[Int[Array, "b i"], Int[Array, "b i"]]:
    """First and last block of a row that has a segment in common with each block, either as keys of
    its queries or as queries of its keys.
    """
    room = plan.blocks * BLOCK - plan.tokens
    place_t = jnp.arange(plan.tokens) // BLOCK
    same_bts = segment_bt[:, :, None] == key_segment_bt[:, None, :]
    same_bts = same_bts | same_bts.swapaxes(1, 2)
    first_bt = jnp.min(jnp.where(same_bts, place_t, plan.blocks), axis=2)
    last_bt = jnp.max(jnp.where(same_bts, place_t, -1), axis=2)

    def of_blocks(x_bt: Array, fill: int, reduce: Callable[..., Array]) -> Array:
        x_bt = jnp.pad(x_bt, ((0, 0), (0, room)), constant_values=fill)
        return reduce(x_bt.reshape(-1, plan.blocks, BLOCK), axis=2).astype(jnp.int32)

    return of_blocks(first_bt, plan.blocks, jnp.min), of_blocks(last_bt, -1, jnp.max)


class _Operands(NamedTuple):
    """Arrays of a call, in the order of `_Row`."""

    seed: Any
    origin: Any
    first: Any
    last: Any
    segment: Any
    key_segment: Any
    q: Any
    k: Any
    v: Any
    slots: Any  # (keys, values, owners) or None


def _call(
    kernel: Callable[..., None],
    plan: _Plan,
    operands: _Operands,
    by_key_head: bool,
    blocks: int,
    more: tuple[Array, ...],
    out: list[tuple[Any, str]],
) -> tuple[Array, ...]:
    """Runs a kernel for every row, head and block.

    Args:
      by_key_head: heads are those of the keys; the kernel sees all query heads of one at a time.
      more: gradient of the output, then numbers of each (row, head, query).
      out: shapes, each with the kind of its layout: "queries", "numbers", "keys" or "slots".
    """
    rows, tokens, heads, size = operands.q.shape
    groups = plan.groups
    if by_key_head:
        queries = pl.BlockSpec((None, tokens, groups, size), lambda b, g, j: (b, 0, g, 0))
        numbers = pl.BlockSpec((None, groups, tokens), lambda b, g, j: (b, g, 0))
    else:
        queries = pl.BlockSpec((None, tokens, None, size), lambda b, n, i: (b, 0, n, 0))
        numbers = pl.BlockSpec((None, None, tokens), lambda b, n, i: (b, n, 0))

    def of_keys(count: int) -> pl.BlockSpec:
        shape = (None, count, None, size)
        if by_key_head:
            return pl.BlockSpec(shape, lambda b, g, j: (b, 0, g, 0))
        return pl.BlockSpec(shape, lambda b, n, i: (b, 0, n // groups, 0))

    def of_row(count: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, count), lambda b, n, i: (b, 0))

    def whole(count: int) -> pl.BlockSpec:
        return pl.BlockSpec((count,), lambda b, n, i: (0,))

    specs = {"queries": queries, "numbers": numbers, "keys": of_keys(tokens)}
    in_specs = [whole(2), whole(2), of_row(plan.blocks), of_row(plan.blocks)]
    in_specs += [of_row(tokens), of_row(tokens), queries, specs["keys"], specs["keys"]]
    arrays = list(operands[:-1])
    if operands.slots is not None:
        specs["slots"] = of_keys(plan.slots)
        in_specs += [specs["slots"], specs["slots"], whole(plan.slots)]
        arrays += operands.slots
    count = len(arrays)
    in_specs += [queries, numbers, numbers][: len(more)]

    def body(*refs: Any) -> None:
        kernel(plan, _Row(*refs[:count]), *refs[count:])

    run = functools.partial(
        pl.pallas_call,
        body,
        grid=(rows, heads // groups if by_key_head else heads, blocks),
        in_specs=in_specs,
        out_specs=[specs[like] for _, like in out],
        out_shape=[shape for shape, _ in out],
    )
    compiled = run(compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2))
    return tuple(
        jax.lax.platform_dependent(
            *arrays, *more, cpu=lambda *xs: run(interpret=True)(*xs), default=compiled
        )
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, slots, segments, seed_2, origin_2) -> Array:
    return _forward(plan, q, k, v, slots, segments, seed_2, origin_2)[0]


def _forward(plan: _Plan, q, k, v, slots, segments, seed_2, origin_2):
    query_bt, key_bt = segments
    reach = _blocks_in_reach(plan, query_bt, key_bt)
    operands = _Operands(seed_2, origin_2, *reach, query_bt, key_bt, q, k, v, slots)
    rows, tokens, heads, _ = q.shape
    numbers = jax.ShapeDtypeStruct((rows, heads, tokens), accum_dtype(q.dtype))
    out = [(jax.ShapeDtypeStruct(q.shape, q.dtype), "queries"), (numbers, "numbers")]
    mixed, log_total_bnt = _call(_forward_kernel, plan, operands, False, plan.blocks, (), out)
    return mixed, (operands, mixed, log_total_bnt)


def _backward(plan: _Plan, saved, d_mixed):
    operands, mixed, log_total_bnt = saved
    # For each query the sum over keys of weight times its gradient, with or without dropout.
    acc = accum_dtype(mixed.dtype)
    lean_bnt = jnp.einsum("btnh,btnh->bnt", mixed, d_mixed, preferred_element_type=acc)
    more = (d_mixed, log_total_bnt, lean_bnt)

    def like(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    out = [(like(operands.q), "queries")]
    (dq,) = _call(_query_kernel, plan, operands, False, plan.blocks, more, out)
    out = [(like(operands.k), "keys"), (like(operands.v), "keys")]
    of_tokens = functools.partial(_key_kernel, False)
    dk, dv = _call(of_tokens, plan, operands, True, plan.blocks, more, out)
    d_slots = None
    if operands.slots is not None:
        out = [(like(x), "slots") for x in operands.slots[:2]]
        of_slots = functools.partial(_key_kernel, True)
        d_slots = (*_call(of_slots, plan, operands, True, 1, more, out), None)
    return dq, dk, dv, d_slots, None, None, None


_attend.defvjp(_forward, _backward)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_btgh: Float[Array, "b t g h"],
    v_btgh: Float[Array, "b t g h"],
    query_bt: Int[Array, "b t"],
    key_bt: Int[Array, "b t"],
    slots: Slots | None = None,
    seed_2: UInt32[Array, "2"] | None = None,
    *,
    causal: bool,
    rate: float = 0.0,
    scale: float | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention within segments; see `jvae.nn.attention.attend`.

    Args:
      query_bt, key_bt: segments of the queries and of the keys.
      slots: keys and values in front of the tokens, and the segment that sees each.
      seed_2: of dropout of the weights; None drops nothing.
      scale: factor of the logits; None for h ** -0.5.
    """
    tokens, heads, size = q_btnh.shape[1:]
    plan = _Plan(
        tokens=tokens,
        slots=0 if slots is None else slots[2].shape[0],
        groups=heads // k_btgh.shape[2],
        heads=heads,
        scale=size**-0.5 if scale is None else scale,
        causal=causal,
        rate=0.0 if seed_2 is None else rate,
    )
    seed_2 = jnp.zeros(2, jnp.uint32) if seed_2 is None else seed_2
    segments = (query_bt, key_bt)
    mesh = in_force()
    if mesh is None:
        origin_2 = jnp.zeros(2, jnp.int32)
        return _attend(plan, q_btnh, k_btgh, v_btgh, slots, segments, seed_2, origin_2)

    # A kernel is opaque to the partitioner, so rows and heads are sharded by hand.
    split = all(count % mesh.shape[TENSOR] == 0 for count in (heads, k_btgh.shape[2]))
    by_head = PartitionSpec(ROWS, None, TENSOR if split else None)

    def attend_shard(q, k, v, slots, segments, seed_2):
        head = jax.lax.axis_index(TENSOR) * q.shape[2] if split else 0
        row = jax.lax.axis_index(ROWS) * q.shape[0]
        origin_2 = jnp.stack([jnp.asarray(row), jnp.asarray(head)]).astype(jnp.int32)
        return _attend(plan, q, k, v, slots, segments, seed_2, origin_2)

    replicated = PartitionSpec()
    return jax.shard_map(
        attend_shard,
        in_specs=(
            *(by_head, by_head, by_head),
            None if slots is None else (by_head, by_head, replicated),
            *((PartitionSpec(ROWS), PartitionSpec(ROWS)), replicated),
        ),
        out_specs=by_head,
        check_vma=False,
    )(q_btnh, k_btgh, v_btgh, slots, segments, seed_2)
