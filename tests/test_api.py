"""The reductions and keys of the contract, and `measure` against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import (
    Batch,
    Generator,
    Posterior,
    Side,
    TextVAE,
    example_keys,
    mean_valid,
    measure,
    per_example,
)

SEGMENT = np.array([[1, 1, 3, 3, 3, 0], [2, 2, 2, 2, 1, 1], [0, 0, 0, 0, 0, 0]], np.int32)
IDS = np.array([7, -1, 2, 9, 4, -1, -1, -1, -1], np.int32)


@pytest.fixture(scope="module")
def batch() -> Batch:
    zero_bt = np.zeros_like(SEGMENT)
    start_bt = np.diff(SEGMENT, axis=1, prepend=0) != 0
    side = Side(zero_bt, SEGMENT, zero_bt)
    scored_bt = (SEGMENT > 0) & ~start_bt
    return jax.tree.map(jnp.asarray, Batch(side, side, None, scored_bt, IDS))


def key_data(keys) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


def test_slots_and_validity(batch):
    assert batch.slots == 3
    np.testing.assert_array_equal(batch.valid_e, IDS >= 0)


def test_per_example_equals_a_loop(batch):
    value_bt = np.random.default_rng(0).normal(size=SEGMENT.shape).astype(np.float32)
    got = jax.jit(per_example)(value_bt, batch)
    for e in range(9):
        row, segment = e // 3, e % 3 + 1
        want = value_bt[row][SEGMENT[row] == segment].sum()
        np.testing.assert_allclose(got[e], want, rtol=1e-6, atol=1e-6)


def test_mean_valid():
    value_e = jnp.asarray([1.0, jnp.inf, 3.0])
    assert mean_valid(value_e, jnp.asarray([True, False, True])) == 2.0
    assert mean_valid(value_e, jnp.zeros(3, bool)) == 0.0
    grad = jax.grad(mean_valid)(jnp.ones(3), jnp.asarray([True, False, True]))
    np.testing.assert_array_equal(grad, [0.5, 0.0, 0.5])


def test_keys_belong_to_examples_and_draws():
    key = jax.random.key(0)
    base = key_data(example_keys(key, jnp.asarray([3, 5, 8]), jnp.arange(4)))
    assert base.shape[:2] == (4, 3)
    turned = key_data(example_keys(key, jnp.asarray([8, 3]), jnp.asarray([2, 1])))
    np.testing.assert_array_equal(turned[0, 0], base[2, 2])
    np.testing.assert_array_equal(turned[1, 1], base[1, 0])
    assert len(np.unique(base.reshape(12, -1), axis=0)) == 12
    assert not np.any(np.all(base == key_data(example_keys(key, jnp.asarray([3, 5, 8]))), axis=-1))


def test_keys_differ_between_streams_and_take_empty_slots():
    ids = jnp.asarray([-1, 0, 1], jnp.int32)
    first, other = (key_data(example_keys(jax.random.key(seed), ids)) for seed in (0, 1))
    assert np.all(np.any(first != other, axis=-1))
    assert len(np.unique(first, axis=0)) == 3


def numbers(keys):
    """Two numbers per key, by no random generator: it would take long to compile."""
    return (jax.random.key_data(keys) % 97).astype(jnp.float32) / 10


def toy(seen: dict, closed_form: bool = True) -> TextVAE:
    """A model of one parameter that writes down what it is called with."""

    def condition(params, batch, drop=None):
        seen["condition"] = drop
        return params * jnp.ones(IDS.shape)

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        seen["encode"] = drop
        seen["chain"] = key_e
        return cond * batch.id_e

    def sample(params, post, key_ke):
        seen["z"] = key_ke
        z_kegz = numbers(key_ke)[:, :, None] + post[None, :, None, None]
        return z_kegz, jnp.square(z_kegz) if closed_form else None

    def prepare(params, batch, drop=None, *, cond=None):
        seen["prepare"] = drop
        return batch

    def log_lik(params, ctx, z_egz):
        z_bs = z_egz[:, 0, 0].reshape(ctx.dec.token_bt.shape[0], -1)
        own_bt = jnp.take_along_axis(z_bs, jnp.maximum(ctx.dec.segment_bt - 1, 0), axis=1)
        return jnp.where(ctx.scored_bt, own_bt, 0.0)

    absent = [None] * 4
    gen = Generator(
        condition, None, None, prepare, log_lik, lambda p, c, z: {"size": z[:, 0, 1]}, *absent
    )
    post = Posterior(encode, sample, None, None)
    return TextVAE(None, None, gen, post, post, (1, 2))


@pytest.fixture(scope="module", params=[True, False], ids=["closed_form", "no_closed_form"])
def measured(request, batch):
    """Terms of the toy model, and the keys it was called with."""
    seen = {}
    model = toy(seen, request.param)

    @jax.jit
    def run(key, drop):
        terms = measure(model, 1.0, batch, key, drop)
        assert all(seen[use] is drop for use in ("condition", "encode", "prepare"))
        return terms, jax.random.key_data(seen["z"]), jax.random.key_data(seen["chain"])

    jax.eval_shape(run, jax.random.key(1), None)
    return request.param, *run(jax.random.key(1), jax.random.key(2))


def test_measure_is_made_of_one_draw(measured):
    closed_form, terms, z_data, _ = measured
    z_egz = np.asarray(z_data[0] % 97, np.float32)[:, None] / 10 + IDS[:, None, None]
    scored_e = np.array([1, 0, 2, 1, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(terms.scored_e, scored_e)
    assert terms.scored_e.dtype == jnp.int32
    np.testing.assert_array_equal(terms.valid_e, IDS >= 0)
    np.testing.assert_allclose(terms.nll_e, -scored_e * z_egz[:, 0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.aux["size"], z_egz[:, 0, 1], rtol=1e-6)
    if closed_form:
        np.testing.assert_allclose(terms.kl_egz, z_egz**2, rtol=1e-5)
    else:
        assert terms.kl_egz is None


def test_measure_has_one_stream_per_use_and_example(measured):
    _, _, z_data, chain_data = measured
    assert z_data.shape[:2] == (1, 9)
    assert chain_data.shape[:1] == (9,)
    keys = np.concatenate([z_data[0], chain_data])
    # Examples 1 and 5 to 8 are empty and share the id -1.
    assert len(np.unique(keys, axis=0)) == 2 * len(np.unique(IDS))
