"""The published LSTM generator: sizes, and values against a loop written from its equations."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Prompt, Side
from jvae.models import lm, lstm_vae, recurrent
from jvae.nn.backbone import stack_of
from jvae.nn.lstm import LstmConfig

CONFIG = LstmConfig(width=3, hidden=4, vocab=7, vocab_multiple=4, init_scale=0.8)


@pytest.mark.parametrize(
    "sizes, count",
    [((256, 256, 10_002), 5_698_578), ((128, 512, 8_411), 6_788_699)],
    ids=["ptb", "yelp_short"],
)
def test_published_parameter_counts(sizes, count):
    config = LstmConfig(*sizes)
    stack = stack_of(config, "model.decoder", "recurrent")
    params = jax.eval_shape(lambda key: recurrent.init(stack, 32, key), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(params))) == count


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _reference(params, tokens, z):
    """log p of tokens[1:] given z: u_t = [embedding; z], h_0 = W z + b, c_0 = 0."""
    p = jax.tree.map(np.asarray, params["decoder"])
    kernel = np.concatenate([p["cell"]["input"]["kernel"], p["latent"]["kernel"]])
    h = z @ p["first"]["kernel"] + p["first"]["bias"]
    c, nats = np.zeros_like(h), []
    for token, target in zip(tokens[:-1], tokens[1:], strict=True):
        u = np.concatenate([p["embed"]["table"][token], z])
        gate = np.einsum("d,dgf->gf", u, kernel) + p["cell"]["input"]["bias"]
        gate = gate + np.einsum("f,fgh->gh", h, p["cell"]["state"]["kernel"])
        i, f, g, o = gate + p["cell"]["state"]["bias"]
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        scores = (p["output"]["table"] @ h + p["output"]["bias"])[:7]
        nats.append(scores[target] - np.log(np.exp(scores).sum()))
    return np.array(nats)


@pytest.fixture(scope="module")
def case():
    """A model, its parameters, and three sentences in two rows."""
    model = lstm_vae.build(lstm_vae.LstmVaeConfig(CONFIG, CONFIG, latent=2))
    params = jax.jit(model.init)(jax.random.key(0))
    token = np.random.default_rng(0).integers(0, 7, (2, 8))
    segment = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    position = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 0, 0]])
    side = Side(token, segment, position)
    batch = Batch(side, side, None, (segment > 0) & (position > 0), np.array([0, 1, 2, -1]))
    z = np.random.default_rng(1).normal(size=(4, 1, 2)).astype(np.float32)
    return model, params, batch, z


SPANS = ((0, 0, 3), (0, 3, 7), (1, 0, 5))  # row, first, stop of each sentence


def test_log_likelihood_is_that_of_the_published_recurrence(case):
    model, params, batch, z = case
    nats = jax.jit(lambda p, z: model.gen.log_lik(p, model.gen.prepare(p, batch), z))(params, z)
    for e, (b, first, stop) in enumerate(SPANS):
        expected = _reference(params, batch.dec.token_bt[b, first:stop], z[e, 0])
        np.testing.assert_allclose(nats[b, first + 1 : stop], expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(nats)[~batch.scored_bt] == 0.0)


def test_steps_after_ragged_prompts_give_the_same(case):
    model, params, batch, z = case
    tokens = [batch.dec.token_bt[b, first:stop] for b, first, stop in SPANS]
    length = np.array([1, 3, 2])
    prompt = np.full((3, 3), 6)
    for e, n in enumerate(length):
        prompt[e, :n] = tokens[e][:n]

    @jax.jit
    def follow(params, z, token_et):
        scores, state = model.gen.start(params, z, Prompt(prompt, jnp.asarray(length)), 5)
        more, state = model.gen.step(params, state, token_et)
        return jax.nn.log_softmax(scores), jax.nn.log_softmax(more), state.position_e

    token_e = np.array([tokens[e][min(n, len(tokens[e]) - 1)] for e, n in enumerate(length)])
    first, second, position = follow(params, z[:3], token_e)
    np.testing.assert_array_equal(position, length + 1)
    assert np.all(np.isneginf(first[:, 7:]))
    for e, n in enumerate(length):
        expected = _reference(params, tokens[e], z[e, 0])
        np.testing.assert_allclose(first[e, tokens[e][n]], expected[n - 1], rtol=1e-5, atol=1e-6)
        if n + 1 < len(tokens[e]):
            np.testing.assert_allclose(
                second[e, tokens[e][n + 1]], expected[n], rtol=1e-5, atol=1e-6
            )


@pytest.mark.slow
def test_dropout_acts_on_both_sides_and_only_with_a_key(case):
    _, params, batch, z = case
    gen = recurrent.generator(stack_of(CONFIG, "model.decoder", "recurrent"), 2)

    @jax.jit
    def nats(params, z, key):
        ctx = gen.prepare(params, batch, key)
        still = gen.prepare(params, batch)
        parts = (still, ctx, still._replace(drop=ctx.drop), still._replace(gate_bt4f=ctx.gate_bt4f))
        return [gen.log_lik(params, part, z) for part in (*parts, ctx)]

    plain, dropped, outputs, inputs, again = nats(params, z, jax.random.key(4))
    for draw in (dropped, outputs, inputs):
        assert np.abs(draw - plain).max() > 0.01
    np.testing.assert_array_equal(dropped, again)


def test_language_model_has_no_parameters_that_read_z():
    model = lm.build(lm.LmConfig(CONFIG))
    names = jax.eval_shape(model.init, jax.random.key(0))["decoder"]
    assert sorted(names) == ["cell", "embed", "output"]
    assert model.latent_shape == (0, 0)
