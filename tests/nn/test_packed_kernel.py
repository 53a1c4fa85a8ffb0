"""The Triton kernel, interpreted, against the plain form: values, gradients, dropped weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.errors import ConfigError
from jvae.nn.attention import MaskSpec, Slots, attend, for_everyone, masked, owners, segments
from jvae.nn.packed_kernel import keep_mask
from jvae.parallel import mesh as meshes

ROWS, HEADS, SIZE = 2, 4, 16
KEY = jax.random.key(7)


def draw(tokens: int, kv_heads: int, slots: int):
    """Ragged segments with padding after them; a slot per segment, one of them empty."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    segment = np.sort(rng.integers(1, max(2, slots), (ROWS, tokens)), axis=1).astype(np.int32)
    segment[0, tokens - 5 :] = 0
    side = Side(jnp.zeros_like(segment), jnp.asarray(segment), jnp.zeros_like(segment))
    q = normal(ROWS, tokens, HEADS, SIZE)
    kv = [normal(ROWS, tokens, kv_heads, SIZE) for _ in range(2)]
    in_front = [normal(ROWS, slots, kv_heads, SIZE) for _ in range(2)] if slots else None
    return side, (q, *kv, in_front), normal(*q.shape)


def kernel(side, causal, rate, operands, owner_m):
    q, k, v, in_front = operands
    slots = None if in_front is None else Slots(*in_front, owner_m)
    spec = segments(side, causal=causal)
    return attend(q, k, v, spec, slots, drop=KEY, rate=rate, kernel="triton")


def masks(seeds, lines, shape, rate):
    """The masks of the first rows and heads."""
    places = [jnp.arange(size, dtype=jnp.uint32) for size in shape]
    line_mask = lambda line: keep_mask(seeds, line, *places, shape[1], rate)  # noqa: E731
    return jax.vmap(line_mask)(jnp.arange(lines, dtype=jnp.uint32))


def plain(side, causal, rate, operands, owner_m):
    """Weights over slots and tokens, multiplied by the kernel's own mask."""
    q, k, v, in_front = operands
    spec = segments(side, causal=causal)
    seen_bts = spec.mask()
    if in_front is not None:
        k, v = (jnp.concatenate(pair, axis=1) for pair in zip(in_front, (k, v), strict=True))
        owner_11m = jnp.asarray(owner_m)[None, None]
        own_btm = (spec.query_bt[:, :, None] == owner_11m) | (owner_11m == 0)
        seen_bts = jnp.concatenate([own_btm, seen_bts], axis=2)
    if rate == 0.0:
        return masked(q, k, v, seen_bts)
    k, v = (jnp.repeat(x, HEADS // x.shape[2], axis=2) for x in (k, v))
    logit = jnp.einsum("btnh,bsnh->bnts", q, k) * SIZE**-0.5
    weight = jax.nn.softmax(jnp.where(seen_bts[:, None], logit, -jnp.inf), axis=-1)
    seeds = tuple(jax.random.bits(KEY, (2,), jnp.uint32))
    keep = masks(seeds, ROWS * HEADS, logit.shape[2:], rate).reshape(logit.shape)
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(keep, weight / (1 - rate), 0.0), v)


CASES = {
    "memory": (40, 4, 5, True, 0.3, owners),
    "shared-heads": (72, 2, 3, True, 0.0, owners),
    "encoder": (33, 4, 0, False, 0.2, owners),
    "prefix": (40, 2, 3, False, 0.1, for_everyone),
    "many-slots": (16, 4, 17, True, 0.1, owners),
}


@pytest.mark.fast_on("memory")
@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_the_plain_form(name):
    """At lengths that no block divides, with blocks that are skipped."""
    tokens, kv_heads, slots, causal, rate, owner = CASES[name]
    with jax.enable_x64(True):
        side, operands, weight = draw(tokens, kv_heads, slots)
        real_bt = np.asarray(side.segment_bt) > 0

        def run(function):
            def total(operands):
                out = function(side, causal, rate, operands, owner(slots))
                return jnp.sum(jnp.where(real_bt[:, :, None, None], out * weight, 0.0)), out

            (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(operands)
            return jax.tree.leaves((jnp.where(real_bt[:, :, None, None], out, 0.0), gradients))

        for got, want in zip(run(kernel), run(plain), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("slots", [0, 3])
def test_padding_may_query_without_being_a_key(slots):
    """Blocks of padding attend to the blocks of the text, and text attends to no padding."""
    with jax.enable_x64(True):
        _, operands, weight = draw(72, 2, slots)
        real_bt = jnp.asarray(np.arange(72) < np.array([[20], [50]]), jnp.int32)
        spec = MaskSpec(jnp.ones_like(real_bt), real_bt, False)

        def run(form):
            def total(operands):
                q, k, v, in_front = operands
                in_slots = None if in_front is None else Slots(*in_front, for_everyone(slots))
                out = attend(q, k, v, spec, in_slots, kernel=form)
                return jnp.sum(out * weight), out

            return jax.tree.leaves(jax.jit(jax.value_and_grad(total, has_aux=True))(operands))

        for got, want in zip(run("triton"), run("xla"), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_weights_are_kept_at_the_rate_and_independently():
    """Over rows and heads, queries, keys and seeds, within five standard errors."""
    rate, shape = 0.1, (64, 72, 77)
    draws = [
        np.asarray(masks((jnp.uint32(seed), jnp.uint32(two)), shape[0], shape[1:], rate))
        for seed, two in ((0, 0), (0, 1), (1, 0), (123, 456))
    ]
    error = np.sqrt(rate * (1 - rate) / draws[0].size)
    for keep in draws:
        assert abs(keep.mean() - (1 - rate)) < 5 * error
        for axis in range(3):
            lower, upper = (np.delete(keep, end, axis) for end in (0, -1))
            together = (lower & upper).mean() - (1 - rate) ** 2
            assert abs(together) < 5 * error, axis
            by_line = keep.mean(axis=tuple({0, 1, 2} - {axis}))
            spread = np.sqrt(rate * (1 - rate) * shape[axis] / keep.size)
            assert np.all(np.abs(by_line - (1 - rate)) < 5 * spread)
    for draw in draws[1:]:
        assert abs((draws[0] & draw).mean() - (1 - rate) ** 2) < 5 * error


@pytest.mark.slow
@pytest.mark.multidevice
def test_dropped_weights_do_not_depend_on_the_mesh():
    side, operands, _ = draw(40, 4, 5)
    mesh = meshes.make_mesh(dict(data=2, tensor=2), jax.devices()[:4])
    run = lambda side, operands: kernel(side, True, 0.3, operands, owners(5))  # noqa: E731
    where = meshes.batch_sharding(mesh)
    got = jax.jit(meshes.under(mesh, run))(*jax.device_put((side, operands), where))
    np.testing.assert_allclose(got, run(side, operands), rtol=2e-5, atol=2e-6)


def test_what_the_kernel_lacks_is_named():
    side, (q, k, v, _), _ = draw(16, 4, 0)
    spec = segments(side, causal=True)
    with pytest.raises(ConfigError, match="head width that is a power of 2, not 12"):
        attend(q[..., :12], k[..., :12], v[..., :12], spec, kernel="triton")
    with pytest.raises(ConfigError, match="supports segments but no windows"):
        attend(q, k, v, spec, seen_bts=spec.mask(), kernel="triton")
    with pytest.raises(ConfigError, match="no soft cap"):
        attend(q, k, v, spec, cap=30.0, kernel="triton")
