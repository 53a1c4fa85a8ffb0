"""Posteriors whose means are batch-normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvae.latent.batch_norm import EPS, KEPT, moments
from jvae.latent.choice import Choice
from jvae.latent.densities import Affine, build_density
from jvae.latent.elbo import measure
from jvae.latent.gaussian import kl_standard
from jvae.models import lstm_vae
from jvae.nn.lstm import LstmConfig
from jvae.training.objectives import Objective
from jvae.training.step import init_state, make_train_step
from jvae.training.tracking import tracked

GROUPS, WIDTH, LEAST = 2, 3, 4.0
VALID = np.array([True, True, False, True, True, False, True])


@pytest.fixture(scope="module")
def density():
    """Reads its features as means and log-variances."""

    def head(outputs, axes):
        assert outputs == (2, WIDTH)
        return Affine(lambda key: {}, lambda params, h_ed: h_ed.reshape(-1, *outputs))

    return build_density(Choice("bn", (("min_kl", LEAST),)), head, (GROUPS, WIDTH))


@pytest.fixture(scope="module")
def h_egd():
    """Features far from mean 0 and variance 1, larger at empty slots."""
    h_egd = np.random.default_rng(0).normal(2.0, 3.0, size=(len(VALID), GROUPS, 2 * WIDTH))
    return np.where(VALID[:, None, None], h_egd, 100.0).astype(np.float32)


def _params(density, **changes):
    boxed = density.init(jax.random.key(0))
    params = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: hasattr(x, "value"))
    return params | changes


def test_the_kl_of_a_batch_has_a_floor(density, h_egd):
    q = density.read_together(_params(density), h_egd, VALID)
    mean_egz = np.asarray(q.mean_egz)[VALID]
    np.testing.assert_allclose(mean_egz.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(mean_egz.var(axis=0), 2 * LEAST / (GROUPS * WIDTH), rtol=1e-4)
    nats_e = np.asarray(jnp.sum(kl_standard(q), axis=(1, 2)))[VALID]
    assert nats_e.mean() > LEAST * (1 - 1e-4)
    flat = q._replace(log_var_egz=jnp.zeros_like(q.log_var_egz))
    nats_e = np.asarray(jnp.sum(kl_standard(flat), axis=(1, 2)))[VALID]
    np.testing.assert_allclose(nats_e.mean(), LEAST, rtol=1e-4)


def test_empty_slots_do_not_count(density, h_egd):
    params = _params(density)
    whole = density.read_together(params, h_egd, VALID)
    alone = density.read_together(params, h_egd[VALID], np.ones(VALID.sum(), bool))
    for a, b in zip(whole, alone, strict=True):
        np.testing.assert_allclose(np.asarray(a)[VALID], b, rtol=1e-5, atol=1e-5)
    empty = density.read_together(params, h_egd, np.zeros(len(VALID), bool))
    assert all(np.all(np.isfinite(leaf)) for leaf in empty)


def test_evaluation_is_training_where_the_statistics_agree(density, h_egd):
    mean_gz, var_gz = moments(h_egd.reshape(-1, GROUPS, 2, WIDTH)[:, :, 0], VALID)
    bias_gz = np.random.default_rng(1).normal(size=(GROUPS, WIDTH)).astype(np.float32)
    params = _params(density, bias=bias_gz, running={"mean": mean_gz, "var": var_gz})
    together, alone = density.read_together(params, h_egd, VALID), density.read(params, h_egd)
    np.testing.assert_allclose(alone.mean_egz, together.mean_egz, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_averages_over_batches(density, h_egd):
    params, want = _params(density), np.zeros((GROUPS, WIDTH))
    mean_gz, _ = moments(h_egd.reshape(-1, GROUPS, 2, WIDTH)[:, :, 0], VALID)
    for _ in range(3):
        params = density.track(params, h_egd, VALID)
        want = KEPT * want + (1 - KEPT) * np.asarray(mean_gz)
    np.testing.assert_allclose(params["running"]["mean"], want, rtol=1e-4)
    first = np.arange(len(VALID)) == 0
    same = density.track(params, h_egd, first)
    np.testing.assert_array_equal(same["running"]["var"], params["running"]["var"])


@pytest.fixture(scope="module")
def model():
    stack = LstmConfig(3, 5, 7, init_scale=0.7, dropout=0.0)
    config = lstm_vae.LstmVaeConfig(stack, stack, latent=2, posterior=Choice("bn"))
    return lstm_vae.build(config)


@pytest.mark.slow
def test_packing_changes_no_term_of_training(model, toys):
    sentences, key = toys.sentences(), jax.random.key(1)

    @jax.jit
    def run(batch):
        params = model.init(jax.random.key(0))
        drop = measure(model, params, batch, key, jax.random.key(2))
        return drop.nll_e, drop.kl_e, measure(model, params, batch, key).kl_e

    packed = [np.asarray(x)[np.array(sentences.order)] for x in run(sentences.packed)]
    for a, b in zip(packed, run(sentences.single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(packed[1] - packed[2])) > 0.1  # training reads the batch


@pytest.mark.slow
def test_an_update_moves_the_statistics_to_those_of_its_batch(model, toys):
    batch, tx = toys.sentences().packed, optax.sgd(0.1)
    step = tracked(model, make_train_step(model, Objective(), lambda step: 1.0, tx))

    @jax.jit
    def run(key):
        state = init_state(model.init(key), tx)
        new, _ = step(state, batch, key)
        broken = state._replace(
            params=state.params
            | {"decoder": jax.tree.map(lambda a: a * jnp.nan, state.params["decoder"])}
        )
        return state.params, new.params, step(broken, batch, key)[0].params

    old, new, skipped = jax.device_get(run(jax.random.key(0)))
    running = new["posterior"]["running"]
    var_gz = (running["var"] - KEPT) / (1 - KEPT)
    mean_gz = running["mean"] / (1 - KEPT)
    params = new | {
        "posterior": new["posterior"] | {"running": {"mean": 0 * mean_gz, "var": 1 + 0 * var_gz}}
    }
    q = model.post.encode(params, batch)
    gamma = (2 * 5.0 / 2) ** 0.5
    raw_egz = (q.mean_egz - params["posterior"]["bias"][None]) / gamma * (1 + EPS) ** 0.5
    want = moments(raw_egz, batch.valid_e)
    np.testing.assert_allclose(mean_gz, want[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(var_gz, want[1], rtol=1e-2, atol=1e-3)
    before, after = (tree["posterior"]["running"] for tree in (old, skipped))
    np.testing.assert_array_equal(after["mean"], before["mean"])
