"""One vector per example from packed rows, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.nn import pool

SEGMENT = np.array([[1, 1, 1, 3, 3, 0, 0], [2, 2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0]])
POSITION = np.array([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 0]])
SIDE = Side(jnp.zeros(SEGMENT.shape, jnp.int32), jnp.asarray(SEGMENT), jnp.asarray(POSITION))
SLOTS, WIDTH = 3, 4


@pytest.fixture(scope="module")
def x_btd():
    return np.random.default_rng(0).normal(size=(*SEGMENT.shape, WIDTH)).astype(np.float32)


def slow(x_btd, vector_of):
    out = np.zeros((len(SEGMENT) * SLOTS, WIDTH))
    for e in range(len(out)):
        row, segment = divmod(e, SLOTS)
        states = x_btd[row][SEGMENT[row] == segment + 1]
        if len(states):
            out[e] = vector_of(states)
    return out


def _by_first_feature(x_btd, side, slots):
    return pool.weighted(x_btd, x_btd[..., 0], side, slots)


@pytest.mark.parametrize(
    "pooling, vector_of",
    [
        (pool.first_token, lambda states: states[0]),
        (pool.mean, lambda states: states.mean(axis=0)),
        (pool.maximum, lambda states: states.max(axis=0)),
        (
            _by_first_feature,
            lambda states: np.exp(states[:, 0]) @ states / np.exp(states[:, 0]).sum(),
        ),
    ],
    ids=["first_token", "mean", "maximum", "weighted"],
)
def test_pooling_equals_a_loop(x_btd, pooling, vector_of):
    got = jax.jit(lambda x: pooling(x, SIDE, SLOTS))(x_btd)
    np.testing.assert_allclose(got, slow(x_btd, vector_of), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_maximum_goes_to_one_token_even_between_equals(x_btd):
    top_btd = np.maximum(x_btd, 10.0)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(pool.maximum(x, SIDE, SLOTS))))(top_btd)
    want = np.zeros_like(x_btd)
    want[0, 0] = want[0, 3] = want[1, 0] = 1.0
    np.testing.assert_array_equal(grad, want)


def test_mean_adds_in_float32():
    """A bfloat16 sum of 600 ones stops at 256."""
    segment = jnp.ones((1, 600), jnp.int32)
    side = Side(segment, segment, jnp.arange(600)[None])
    got = jax.jit(lambda: pool.mean(jnp.ones((1, 600, 2), jnp.bfloat16), side, 1))()
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), 1.0)
