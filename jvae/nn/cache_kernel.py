"""Attention of one new token over a key-value cache as a Triton kernel, for GPUs.

    for each example and key head:   the new token, then the places in use, block by block, for all
                                     query heads; the token's key and value are written in place

Empty places are not read. Decoding is bound by memory and a cache is half full on average, so the
plain form (`jvae.nn.cache.step`) reads about twice as much, and writes in two more kernels. Online
softmax, in float32 or wider: Milakov and Gimelshein (2018), "Online normalizer calculation for
softmax".

It has no gradients. Pallas' Triton backend is deprecated since JAX 0.11, which warns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from jvae.nn.layers import accum_dtype
from jvae.nn.xent import soft_cap

BLOCK = 16  # places per block
HIDDEN = -1e30  # logit of a hidden place
WARPS = 1


def step(
    q_enh: Float[Array, "e n h"],
    key_egh: Float[Array, "e g h"],
    value_egh: Float[Array, "e g h"],
    keys_egmh: Float[Array, "e g m h"],
    values_egmh: Float[Array, "e g m h"],
    place: Int[Array, ""],
    visible_em: Bool[Array, "e m"],
    *,
    scale: float,
    cap: float | None = None,
) -> tuple[Float[Array, "e n h"], Float[Array, "e g m h"], Float[Array, "e g m h"]]:
    """See `jvae.nn.cache.step`. H must be a power of 2, and the new token is always visible.

    Returns: what is read, and the keys and values with the token's own.
    """
    examples, heads, size = q_enh.shape
    kv_heads, places = keys_egmh.shape[1:3]
    q_egrh = q_enh.reshape(examples, kv_heads, heads // kv_heads, size)

    def of_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda e, g: (e, g, *[0] * len(shape)))

    queries, token, cache = of_head(heads // kv_heads, size), of_head(size), of_head(places, size)
    operands = (q_egrh, key_egh, value_egh, keys_egmh, values_egmh)
    first = 2  # operands before them
    cached = keys_egmh.size * keys_egmh.dtype.itemsize
    read_and_written = 2 * sum(x.size * x.dtype.itemsize for x in operands[:3])
    run = functools.partial(
        pl.pallas_call,
        functools.partial(_kernel, scale, cap),
        grid=(examples, kv_heads),
        in_specs=[
            pl.BlockSpec((1,), lambda e, g: (0,)),
            pl.BlockSpec((None, places), lambda e, g: (e, 0)),
            *(queries, token, token, cache, cache),
        ],
        out_specs=[queries, cache, cache],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_egrh, *operands[3:])],
        input_output_aliases={first + 3: 1, first + 4: 2},
        name="cache_step",
        # Half of both caches: what a step reads on average while they fill up.
        cost_estimate=pl.CostEstimate(
            flops=2 * heads * examples * places * size,
            transcendentals=heads * examples * places // 2,
            bytes_accessed=cached + read_and_written + 4 * visible_em.size,
        ),
    )
    compiled = run(compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2))
    mixed_egrh, keys_egmh, values_egmh = jax.lax.platform_dependent(
        *(place.reshape(1), visible_em.astype(jnp.int32), *operands),
        cpu=lambda *arrays: run(interpret=True)(*arrays),
        default=compiled,
    )
    return mixed_egrh.reshape(q_enh.shape), keys_egmh, values_egmh


def _kernel(
    scale: float,
    cap: float | None,
    place_ref: Any,  # (1,)
    visible_ref: Any,  # (M,)
    q_ref: Any,  # (R, H), like the result
    key_ref: Any,  # (H,)
    value_ref: Any,
    keys_ref: Any,  # (M, H)
    values_ref: Any,
    mixed_ref: Any,
    keys_out_ref: Any,  # the same memory as the inputs
    values_out_ref: Any,
) -> None:
    place = place_ref[0]
    acc = accum_dtype(q_ref.dtype)
    key, value = key_ref[:], value_ref[:]
    queries = [q_ref[number, :].astype(acc) * scale for number in range(q_ref.shape[0])]

    def logits(query: Array, keys: Array) -> Array:
        return soft_cap(jnp.sum(keys.astype(acc) * query, axis=-1), cap)

    def add(block: Any, heads: list[tuple[Array, Array, Array]]) -> list[Any]:
        start = block * BLOCK
        inside = start + jax.lax.broadcasted_iota(jnp.int32, (BLOCK,), 0) < place
        keys, values = (
            plgpu.load(ref.at[pl.ds(start, BLOCK), :], mask=inside[:, None], other=0.0)
            for ref in (keys_ref, values_ref)
        )
        visible = plgpu.load(visible_ref.at[pl.ds(start, BLOCK)], mask=inside, other=0) != 0
        after = []
        for query, (top, total, mixed) in zip(queries, heads, strict=True):
            logit = jnp.where(visible, logits(query[None, :], keys), HIDDEN)
            new_top = jnp.maximum(top, jnp.max(logit))
            weight = jnp.where(visible, jnp.exp(logit - new_top), 0.0)
            shrink = jnp.exp(top - new_top)
            mixed = mixed * shrink + jnp.sum(weight[:, None] * values.astype(acc), axis=0)
            after.append((new_top, total * shrink + jnp.sum(weight), mixed))
        return after

    token = [(logits(query, key), jnp.ones((), acc), value.astype(acc)) for query in queries]
    blocks = (place + BLOCK - 1) // BLOCK
    for number, (_, total, mixed) in enumerate(jax.lax.fori_loop(0, blocks, add, token)):
        mixed_ref[number, :] = (mixed / total).astype(mixed_ref.dtype)
    keys_out_ref[place, :] = key
    values_out_ref[place, :] = value
