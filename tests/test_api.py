"""The reductions and keys of the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import (
    Batch,
    Posterior,
    Proposal,
    Sampler,
    Side,
    TextVAE,
    example_keys,
    mean_valid,
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


def test_a_sampler_brings_the_posterior_and_the_proposal_of_metrics():
    metric = Posterior(None, None, None, None)
    proposal = Proposal(None, None)
    plain = TextVAE(None, None, None, None, Posterior(None, None, None, None), (1, 2))
    assert plain.metric_post is plain.post and plain.proposal is None
    sampler = Sampler(None, metric, None, proposal, None, None)
    chain = plain._replace(post=plain.post._replace(sampler=sampler))
    assert chain.metric_post is metric and chain.proposal is proposal
