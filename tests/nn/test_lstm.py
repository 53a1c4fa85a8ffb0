"""The LSTM against a NumPy loop written from its equations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.nn import lstm, pool, xent
from jvae.nn.lstm import LstmConfig

CONFIG = LstmConfig(width=3, hidden=4, vocab=7)


def _params():
    boxed = lstm.init_cell(dataclasses.replace(CONFIG, init_scale=0.8), jax.random.key(0))
    return nn.unbox(boxed)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loop(params, x_td, h=None):
    """Hidden states of one sentence; gates in the order input, forget, cell, output."""
    p = jax.tree.map(np.asarray, params)
    hidden = p["state"]["kernel"].shape[0]
    h, c, out = np.zeros(hidden) if h is None else h, np.zeros(hidden), []
    for x in x_td:
        gate = np.einsum("d,dgf->gf", x, p["input"]["kernel"]) + p["input"]["bias"]
        gate = gate + np.einsum("f,fgh->gh", h, p["state"]["kernel"]) + p["state"]["bias"]
        i, f, g, o = gate
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out)


def test_rows_of_segments_equal_a_loop_over_each():
    params = _params()
    x = np.random.default_rng(1).normal(size=(2, 7, 3)).astype(np.float32)
    segment = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 3, 3, 0, 0]])
    position = np.array([[0, 1, 2, 0, 1, 2, 0], [0, 1, 0, 0, 1, 0, 0]])
    side = Side(np.zeros_like(segment), segment, position)

    @jax.jit
    def run(params, x_btd):
        hidden = lstm.run(params, lstm.gates(params, x_btd), jnp.asarray(position == 0))
        return hidden, pool.last_token(hidden, side, 3)

    hidden, last = run(params, x)
    for b, first, stop, slot in ((0, 0, 3, 0), (0, 3, 6, 1), (1, 0, 2, 0), (1, 2, 3, 1)):
        expected = _loop(params, x[b, first:stop])
        np.testing.assert_allclose(hidden[b, first:stop], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(last[3 * b + slot], expected[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(last[2], 0.0)


def test_first_state_enters_by_the_gates_of_the_first_token():
    params = _params()
    rng = np.random.default_rng(2)
    x, h = rng.normal(size=(1, 3, 3)).astype(np.float32), rng.normal(size=(1, 4))

    @jax.jit
    def run(params, x, h):
        gate = lstm.gates(params, x).at[:, 0].add(lstm.state_gates(params, h))
        state = lstm.prefill(params, gate, jnp.array([2]))
        return lstm.run(params, gate, jnp.array([[True, False, False]])), state

    hidden, state = run(params, x, h.astype(np.float32))
    expected = _loop(params, x[0], h[0])
    np.testing.assert_allclose(hidden[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.hidden_ef[0], expected[1], rtol=1e-5, atol=1e-6)


def test_initial_values_fill_the_stated_interval():
    table = np.asarray(nn.unbox(lstm.init_table(CONFIG, jax.random.key(0)))["table"])
    assert np.abs(table).max() <= 0.1
    assert table.min() < -0.05 and table.max() > 0.05


@pytest.mark.parametrize("chunk", [3, 100])
def test_output_bias_in_values_and_gradient(chunk):
    rng = np.random.default_rng(3)
    hidden, table, bias = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (8, 4), (8,)))
    target = rng.integers(0, 7, (2, 3))

    def ours(bias):
        return xent.token_log_prob(hidden, table, target, 7, chunk, bias)

    def plain(bias):
        scores = jnp.einsum("btd,vd->btv", hidden, table) + bias.reshape(1, 1, -1)
        log_p = jax.nn.log_softmax(scores[..., :7])
        return jnp.take_along_axis(log_p, jnp.asarray(target)[..., None], -1)[..., 0]

    def with_gradient(f):
        return lambda bias: (f(bias), jax.grad(lambda bias: f(bias).sum())(bias))

    both = jax.jit(lambda bias: [with_gradient(f)(bias) for f in (ours, plain)])
    (value, grad), (value2, grad2) = both(bias)
    np.testing.assert_allclose(value, value2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, grad2, rtol=1e-5, atol=1e-6)
