"""Fused attention kernels, which never write the attention weights to memory.

`cudnn` runs on NVIDIA GPUs in bfloat16 or float16; `triton` (`jvae.nn.packed_kernel`) runs on GPUs
and `splash` on TPUs, both interpreted on CPUs for tests. None has a second derivative, so learned
step sizes of Langevin chains need "xla".
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jvae.parallel.mesh import ROWS, TENSOR, in_force

KERNELS = ("cudnn", "triton", "splash")
DROPPING = ("triton",)  # those that can drop attention weights
BLOCK = 128  # lengths are padded to multiples of this
NOBODY = -1  # segment of that padding


def cudnn(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    mask_bts: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """cuDNN's flash attention with a full (T, S) mask.

    Its gradients with a mask need even lengths, so odd ones are padded with hidden keys.
    """
    length, (odd_t, odd_s) = q_btnh.shape[1], (size % 2 for size in mask_bts.shape[1:])

    def pad(x: Array, more: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))

    q_btnh, k_bsnh, v_bsnh = pad(q_btnh, odd_t), pad(k_bsnh, odd_s), pad(v_bsnh, odd_s)
    mask_bnts = jnp.pad(mask_bts, ((0, 0), (0, odd_t), (0, odd_s)))[:, None]
    mixed_btnh = jax.nn.dot_product_attention(
        q_btnh, k_bsnh, v_bsnh, mask=mask_bnts, implementation="cudnn"
    )
    return jnp.asarray(mixed_btnh)[:, :length]


def splash(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    query_bt: Int[Array, "b t"],
    key_bs: Int[Array, "b s"],
    *,
    causal_from: int | None,
) -> Float[Array, "b t n h"]:
    """Pallas splash attention within segments.

    Args:
      query_bt, key_bs: segments; a query attends to the keys of its own segment.
      causal_from: index of the first key under the causal mask. Key `causal_from` + t is aligned
        with query t and hidden from earlier queries; keys before `causal_from` are visible to all.
        None for no causal mask.
    """
    t = q_btnh.shape[1]

    def pad(x: Array, value: int = 0) -> Array:
        room = [(0, 0), (0, -x.shape[1] % BLOCK)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, room, constant_values=value)

    groups = q_btnh.shape[2] // k_bsnh.shape[2]
    if groups > 1:  # the kernel needs one key head per query head
        k_bsnh, v_bsnh = (jnp.repeat(x, groups, axis=2) for x in (k_bsnh, v_bsnh))
    q_btnh = pad(q_btnh * q_btnh.shape[-1] ** -0.5)
    k_bsnh, v_bsnh = pad(k_bsnh), pad(v_bsnh)
    operands = (q_btnh, k_bsnh, v_bsnh, pad(query_bt, NOBODY), pad(key_bs, NOBODY))
    run = functools.partial(
        jax.lax.platform_dependent,
        cpu=functools.partial(_padded_splash, causal_from, True),
        default=functools.partial(_padded_splash, causal_from, False),
    )
    mesh = in_force()
    if mesh is not None:
        # A kernel is opaque to the partitioner, so rows and heads are sharded by hand.
        heads = TENSOR if q_btnh.shape[2] % mesh.shape[TENSOR] == 0 else None
        by_head, rows = PartitionSpec(ROWS, None, heads), PartitionSpec(ROWS)
        run = jax.shard_map(
            run,
            in_specs=(by_head, by_head, by_head, rows, rows),
            out_specs=by_head,
            check_vma=False,
        )
    return run(*operands)[:, :t]


def _padded_splash(
    causal_from: int | None,
    interpret: bool,
    q: Array,
    k: Array,
    v: Array,
    query_bt: Array,
    key_bs: Array,
) -> Array:
    # Imported here, since it slows every start down and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    shape, heads = (q.shape[1], k.shape[1]), q.shape[2]
    mask = (
        splash_attention_mask.FullMask(shape)
        if causal_from is None
        else splash_attention_mask.CausalMask(shape, offset=causal_from)
    )
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    by_head = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    ids = splash_attention_kernel.SegmentIds(query_bt, key_bs)
    y_bnth: Any = jax.vmap(kernel)(*by_head, ids)
    return jnp.swapaxes(y_bnth, 1, 2)
