"""Attention against a slow loop, and the masks that segments, order and latent slots make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.errors import ConfigError
from jvae.nn import cache as caches
from jvae.nn.attention import (
    Slots,
    attend,
    causal,
    for_everyone,
    masked,
    own_slot,
    owners,
    same_segment,
    segments,
    spread,
)
from jvae.parallel import mesh as meshes

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
    return Slots(jnp.asarray(key), jnp.asarray(value), owners(M))


def slow(q, k, v, sees, slots=None):
    """Loops over rows, queries and heads; sees(b, t, s) and slots as (keys, values, sees)."""
    scale = H**-0.5
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
    "causal, sees", [(True, sees_causal), (False, sees_segment)], ids=["causal", "full"]
)
def test_attention_equals_a_loop(qkv, causal, sees):
    got = jax.jit(lambda q, k, v: attend(q, k, v, segments(SIDE, causal=causal)))(*qkv)
    np.testing.assert_allclose(got, slow(*qkv, sees), rtol=1e-5, atol=1e-6)


def test_attention_with_latent_slots_equals_a_loop(qkv, slots):
    run = jax.jit(lambda q, k, v: attend(q, k, v, segments(SIDE, causal=True), slots))
    np.testing.assert_allclose(run(*qkv), slow(*qkv, sees_causal, slots), rtol=1e-5, atol=1e-6)


def test_a_slot_of_everyone_is_seen_by_all(qkv, slots):
    """As one slot each that belongs to the segment, with the same key and value."""
    shared = Slots(slots.key_bmnh[:, :1], slots.value_bmnh[:, :1], for_everyone(1))
    copies = (jnp.repeat(x, M, axis=1) for x in (shared.key_bmnh, shared.value_bmnh))
    each = Slots(*copies, owners(M))
    run = jax.jit(lambda q, k, v, s: attend(q, k, v, segments(SIDE, causal=True), s))
    real_bt = SEGMENT > 0
    np.testing.assert_allclose(run(*qkv, shared)[real_bt], run(*qkv, each)[real_bt], rtol=1e-5)


@pytest.fixture(scope="module")
def long():
    """Rows of 150 tokens in ragged segments, four heads, three slots a row, one of them empty."""
    rng = np.random.default_rng(2)
    shape = (2, 150, 4, 16)
    qkv = tuple(rng.normal(size=shape).astype(np.float32) for _ in range(3))
    segment = np.zeros(shape[:2], np.int32)
    segment[0, :60], segment[0, 60:61], segment[0, 61:140] = 1, 2, 3
    segment[1, :150] = 1
    side = Side(jnp.zeros_like(segment), jnp.asarray(segment), jnp.zeros_like(segment))
    key, value = (rng.normal(size=(2, 3, 4, 16)).astype(np.float32) for _ in range(2))
    return qkv, side, Slots(jnp.asarray(key), jnp.asarray(value), owners(3))


def out_and_gradients(kernel, causal, side, slots, qkv, weight):
    def total(q, k, v, kv):
        slots = None if kv is None else Slots(*kv, owners(3))
        y = attend(q, k, v, segments(side, causal=causal), slots, kernel=kernel)
        return jnp.sum(weight * y * (side.segment_bt > 0)[:, :, None, None]), y

    return jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)(
        *qkv, None if slots is None else slots[:2]
    )


@pytest.mark.fast_on("causal-slots")
@pytest.mark.parametrize("slotted", [False, True], ids=["tokens", "slots"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_splash_equals_the_reference(long, causal, slotted):
    """Values and gradients, in segments, with latent slots, at lengths no block divides."""
    qkv, side, slots = long
    weight = np.random.default_rng(3).normal(size=qkv[0].shape).astype(np.float32)
    arguments = (causal, side, slots if slotted else None, qkv, weight)
    run = jax.jit(out_and_gradients, static_argnums=(0, 1))
    (_, got), got_grads = run("splash", *arguments)
    (_, want), want_grads = run("xla", *arguments)
    real_bt = np.asarray(side.segment_bt) > 0
    np.testing.assert_allclose(got[real_bt], want[real_bt], rtol=2e-5, atol=2e-6)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.multidevice
def test_splash_on_a_mesh(long):
    qkv, side, slots = long
    mesh = meshes.make_mesh(dict(data=2, tensor=2), jax.devices()[:4])
    run = lambda q, k, v, side: attend(  # noqa: E731
        q, k, v, segments(side, causal=True), slots, kernel="splash"
    )
    where = meshes.batch_sharding(mesh)
    got = jax.jit(meshes.under(mesh, run))(*jax.device_put((*qkv, side), where))
    want = attend(*qkv, segments(side, causal=True), slots)
    real_bt = np.asarray(side.segment_bt) > 0
    np.testing.assert_allclose(np.asarray(got)[real_bt], want[real_bt], rtol=2e-5, atol=2e-6)


def test_splash_refuses_slots_of_everyone(qkv, slots):
    shared = slots._replace(owner_m=for_everyone(M))
    with pytest.raises(ConfigError, match="cannot make a prefix visible"):
        attend(*qkv, segments(SIDE, causal=True), shared, kernel="splash")


def test_fused_kernels_refuse_dropout_of_weights(qkv):
    for kernel in ("splash", "cudnn"):
        with pytest.raises(
            ConfigError, match="does not support dropout of attention weights, but dropout is 0.5"
        ):
            attend(
                *(*qkv, segments(SIDE, causal=True)),
                drop=jax.random.key(0),
                rate=0.5,
                kernel=kernel,
            )


def test_cudnn_is_given_the_same_mask(qkv, slots, monkeypatch):
    """What the kernel is asked for, computed without it: even lengths, as its gradients need."""
    fused = jax.nn.dot_product_attention

    def plain(*args, implementation, **more):
        assert implementation == "cudnn" and not any(x.shape[1] % 2 for x in args)
        return fused(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    mask_spec = segments(SIDE, causal=True)
    got, want = (attend(*qkv, mask_spec, slots, kernel=kernel) for kernel in ("cudnn", "xla"))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_cached_attention_equals_the_loop_at_each_length(qkv):
    q, k, v = qkv
    stacked = jnp.stack([k, k + 1]), jnp.stack([v, v + 1])
    cache = caches.filled(*stacked, slots=0, length_e=jnp.full(B, T), room=3).layers[0]
    run = jax.jit(functools.partial(caches.look_up, scale=q.shape[-1] ** -0.5))
    for last in range(T):
        last_e = np.array([last, T - 1 - last], np.int32)
        got = run(q[:, 0], cache, np.arange(T + 3) <= last_e[:, None])
        want = slow(q[:, :1], k, v, lambda b, t, s, last_e=last_e: s <= last_e[b])
        np.testing.assert_allclose(got, want[:, 0], rtol=1e-5, atol=1e-6)


def test_places_have_the_positions_of_their_tokens():
    """Two slots, prompts of one and of two tokens, then two tokens each."""
    key = jnp.arange(2.0 * 4).reshape(1, 2, 4, 1, 1)
    kv = caches.filled(key, key, slots=2, length_e=jnp.array([1, 2]), room=1)
    position_e = jnp.array([1, 2])
    for step in range(2):
        position_em = caches.placed(kv, position_e + step)
        new = jnp.full((2, 1, 1), 10.0 + step)
        layers = tuple(caches.put(layer, kv.place, new, -new) for layer in kv.layers)
        kv = caches.grown(kv._replace(layers=layers, position_em=position_em), 1)
        kv = kv._replace(place=kv.place + 1)
    nothing = caches.NOTHING
    np.testing.assert_array_equal(
        kv.position_em, [[-1, -1, 0, nothing, 1, 2, nothing], [-1, -1, 0, 1, 2, 3, nothing]]
    )
    (layer,) = kv.layers
    np.testing.assert_array_equal(
        layer.key_enmh[..., 0], [[[0, 1, 2, 3, 10, 11, 0]], [[4, 5, 6, 7, 10, 11, 0]]]
    )
    np.testing.assert_array_equal(layer.value_enmh[0, 0, 4:6, 0], [-10, -11])


def test_queries_that_see_nothing_stay_finite(qkv):
    nothing = jnp.zeros((B, T, T), bool)
    total = lambda q, k, v: jnp.sum(masked(q, k, v, nothing) ** 2)  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*qkv)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_huge_logits_stay_finite(qkv):
    q, k, v = qkv
    total = lambda q: jnp.sum(attend(1e6 * q, k, v, segments(SIDE, causal=True)) ** 2)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(total))(q)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


def test_bfloat16_is_kept_and_softmax_is_wider(qkv):
    """2,000 equal keys: bfloat16 weights of a bfloat16 softmax would not add up to 1."""
    keys = 2000
    q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    k = jnp.ones((1, keys, 1, 2), jnp.bfloat16)
    got = jax.jit(lambda: masked(q, k, k, jnp.ones((1, 1, keys), bool)))()
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), 1.0, atol=0.01)


def test_dropout_of_weights_keeps_the_mean(qkv):
    copies = 200
    many = [np.repeat(x[:1], copies, axis=0) for x in qkv]
    mask = np.repeat(np.asarray(causal(SIDE))[:1], copies, axis=0)
    run = jax.jit(lambda q, k, v: masked(q, k, v, mask, drop=jax.random.key(0), rate=0.5))
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
