"""Attention against a slow loop, and the masks that segments, order and latent slots make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.nn.attention import (
    Slots,
    attend,
    attend_cached,
    causal,
    own_slot,
    same_segment,
    spread,
)

B, T, N, H, M = 2, 6, 2, 3, 2
SEGMENT = np.array([[1, 1, 1, 2, 2, 0], [2, 2, 2, 2, 0, 0]])  # slot 1 of the second row is empty
SIDE = Side(jnp.zeros((B, T), jnp.int32), jnp.asarray(SEGMENT), jnp.zeros((B, T), jnp.int32))


def draw(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def qkv():
    shape = (B, T, N, H)
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for _ in range(3))


@pytest.fixture(scope="module")
def slots() -> Slots:
    key, value = draw(B, M, N, H), 2 * draw(B, M, N, H)
    return Slots(jnp.asarray(key), jnp.asarray(value), own_slot(SIDE, M))


def slow(q, k, v, sees, slots=None, scale=None):
    """Loops over rows, queries and heads; sees(b, t, s) and slots as (keys, values, sees)."""
    scale = H**-0.5 if scale is None else scale
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [k[b, s, n] for s in range(k.shape[1]) if sees(b, t, s)]
        values = [v[b, s, n] for s in range(k.shape[1]) if sees(b, t, s)]
        if slots is not None and SEGMENT[b, t] > 0:
            keys.append(np.asarray(slots.key_bmnh)[b, SEGMENT[b, t] - 1, n])
            values.append(np.asarray(slots.value_bmnh)[b, SEGMENT[b, t] - 1, n])
        weight = np.exp(scale * np.array(keys, np.float64) @ q[b, t, n])
        out[b, t, n] = weight / weight.sum() @ np.array(values)
    return out


def sees_causal(b, t, s) -> bool:
    return s <= t and SEGMENT[b, s] == SEGMENT[b, t]


def sees_segment(b, t, s) -> bool:
    return SEGMENT[b, s] == SEGMENT[b, t]


@pytest.mark.parametrize(
    "mask, sees", [(causal, sees_causal), (same_segment, sees_segment)], ids=["causal", "full"]
)
def test_attention_equals_a_loop(qkv, mask, sees):
    got = jax.jit(lambda q, k, v: attend(q, k, v, mask(SIDE)))(*qkv)
    np.testing.assert_allclose(got, slow(*qkv, sees), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_with_latent_slots_equals_a_loop(qkv, slots, scale):
    run = jax.jit(lambda q, k, v: attend(q, k, v, causal(SIDE), slots, scale=scale))
    np.testing.assert_allclose(
        run(*qkv), slow(*qkv, sees_causal, slots, scale), rtol=1e-5, atol=1e-6
    )


def test_cached_attention_equals_the_loop_at_each_length(qkv):
    q, k, v = qkv
    run = jax.jit(attend_cached)
    for last in range(T):
        last_e = np.array([last, T - 1 - last], np.int32)
        got = run(q[:, 0], k, v, last_e)
        want = slow(q[:, :1], k, v, lambda b, t, s, last_e=last_e: s <= last_e[b])
        np.testing.assert_allclose(got, want[:, 0], rtol=1e-5, atol=1e-6)


def test_queries_that_see_nothing_stay_finite(qkv, slots):
    nothing = jnp.zeros((B, T, T), bool)
    blind = slots._replace(visible_btm=jnp.zeros((B, T, M), bool))
    total = lambda q, k, v: jnp.sum(attend(q, k, v, nothing, blind) ** 2)  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*qkv)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_huge_logits_stay_finite(qkv):
    q, k, v = qkv
    total = lambda q: jnp.sum(attend(1e6 * q, k, v, causal(SIDE)) ** 2)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(total))(q)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


def test_bfloat16_is_kept_and_softmax_is_wider(qkv):
    """2,000 equal keys: bfloat16 weights of a bfloat16 softmax would not add up to 1."""
    keys = 2000
    q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    k = jnp.ones((1, keys, 1, 2), jnp.bfloat16)
    got = jax.jit(lambda: attend(q, k, k, jnp.ones((1, 1, keys), bool)))()
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), 1.0, atol=0.01)


def test_dropout_of_weights_keeps_the_mean(qkv):
    copies = 200
    many = [np.repeat(x[:1], copies, axis=0) for x in qkv]
    mask = np.repeat(np.asarray(causal(SIDE))[:1], copies, axis=0)
    run = jax.jit(lambda q, k, v: attend(q, k, v, mask, drop=jax.random.key(0), rate=0.5))
    got = np.asarray(run(*many), np.float64)
    want = slow(*(x[:1] for x in qkv), sees_causal)[0]
    error = got.std(axis=0) / np.sqrt(copies)
    assert np.all(error > 0)
    assert np.all(np.abs(got.mean(axis=0) - want) < 5 * error)


def test_masks_of_packed_rows():
    full, ordered = np.asarray(same_segment(SIDE)), np.asarray(causal(SIDE))
    for b, t, s in np.ndindex(B, T, T):
        assert full[b, t, s] == sees_segment(b, t, s)
        assert ordered[b, t, s] == sees_causal(b, t, s)
    assert np.all(np.any(ordered, axis=2))
    visible = np.asarray(own_slot(SIDE, M))
    assert visible.sum() == np.count_nonzero(SEGMENT)
    for b, t in zip(*np.nonzero(SEGMENT), strict=True):
        assert visible[b, t, SEGMENT[b, t] - 1]


def test_spread_gives_each_token_its_own_vector():
    value_ed = draw(B * M, 5)
    got = np.asarray(jax.jit(lambda v: spread(v, SIDE))(value_ed))
    assert got.shape == (B, T, 5)
    for b, t in zip(*np.nonzero(SEGMENT), strict=True):
        np.testing.assert_array_equal(got[b, t], value_ed[b * M + SEGMENT[b, t] - 1])
