"""The modes on a model: what they are made of, and how the card prints them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys, per_example
from jvae.evals import change_of_variables, compat
from jvae.evals.card import Card, Report
from jvae.evals.compat.draws import collect_draws, end_of_text
from jvae.evals.compat.shared import log_mean_weight
from jvae.evals.latent import collect_posteriors
from jvae.evals.likelihood import TextCounts, evaluate_likelihood
from jvae.latent.priors import standard_normal
from jvae.latent.short_run import ChainConfig

KEY = jax.random.key(3)
WORDS = 4


@pytest.fixture
def setting(toys):
    model, params = toys.discrete(), toys.discrete_params()
    batches = toys.text_batches(toys.all_strings()[::9], 2, slots=3, pad=2, empty=(1,))
    return model, params, batches


def test_draws_are_those_of_the_likelihood(setting):
    model, params, batches = setting
    likelihood = evaluate_likelihood(model, params, batches, KEY, 6)
    draws, kl_eg = collect_draws(model, params, batches, KEY, 6, chunk=4)
    np.testing.assert_allclose(-log_mean_weight(*draws), likelihood.scores.nll_e, rtol=1e-5)
    np.testing.assert_allclose(-draws.log_lik_ke.mean(0), likelihood.scores.rec_e, rtol=1e-5)
    np.testing.assert_allclose(kl_eg.sum(axis=1), likelihood.scores.kl_e, rtol=1e-5)


def test_released_draws_take_the_log_variance_for_the_deviation(setting):
    model, params, batches = setting
    released, _ = collect_draws(model, params, batches, KEY, 2, released=True)
    (batch,), (_, z_key) = batches[:1], jax.random.split(KEY)

    @jax.jit
    def expected(params):
        q = model.post.encode(params, batch)
        z_kegz = model.post.sample(params, q, example_keys(z_key, batch.id_e, np.arange(2)))
        noise_egz = (z_kegz[1] - q.mean_egz) / jnp.exp(0.5 * q.log_var_egz)
        z_egz = q.mean_egz + noise_egz * q.log_var_egz
        nats_bt = model.gen.log_lik(params, model.gen.prepare(params, batch), z_egz)
        kept_bt = batch.dec.position_bt < WORDS  # the fifth token is the last
        return (
            per_example(nats_bt * kept_bt, batch),
            model.prior.log_prob(params, z_egz),
            model.post.log_prob(params, q, z_egz),
        )

    want = expected(params)
    real = batch.id_e >= 0
    for got, value in zip(released, want, strict=True):
        np.testing.assert_allclose(got[1][batch.id_e[real]], value[real], rtol=1e-4)


def test_the_end_of_each_example_is_its_last_token():
    segment_bt = np.array([[1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1]])
    actual = np.asarray(end_of_text(segment_bt))
    assert actual.astype(int).tolist() == [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]]


def blocks(setting, *modes, **more):
    model, params, batches = setting
    likelihood = evaluate_likelihood(model, params, batches, KEY, 12)
    posts = collect_posteriors(model, params, batches, KEY)
    counts = TextCounts(np.full(9, 4), np.full(9, 7))
    ours = {"ppl_t": 2.5}
    results = compat.blocks(
        modes, model, params, lambda: batches, KEY, likelihood, posts, counts, ours, **more
    )
    return results, likelihood


def test_modes_on_a_model(setting):
    modes, likelihood = blocks(setting, *compat.MODES)
    value = {(b.mode, row.name): row.value for b in modes for row in b.rows}
    total = likelihood.scores.bound_e[12].sum(dtype=float)
    # Four words and no end in this toy: it scores 4 tokens of each of the 9 sentences.
    assert value["optimus", "ppl"] == pytest.approx(np.exp(total / (9 * 5)), rel=1e-6)
    assert value["lagging", "ppl"] == pytest.approx(np.exp(total / (9 * 5)), rel=1e-6)
    assert value["textae", "nll"] == pytest.approx(total / 9, rel=1e-6)
    assert value["t5vae", "elbo"] == pytest.approx(value["t5vae", "kl"] - value["t5vae", "rec"])
    assert value["t5vae", "ppl"] == pytest.approx(
        np.exp(9 * (value["t5vae", "rec"] + value["t5vae", "kl"]) / (9 * 3)), rel=1e-6
    )
    # One group: the mean over layers is the sum.
    assert value["della", "kl"] == pytest.approx(value["optimus", "kl"], rel=1e-5)
    assert value["adavae", "nll"] < value["optimus", "nll"]  # a token less


def test_change_of_variables_stands_beside_the_fitted_bound(setting):
    model, params, batches = setting
    (chosen,) = batches[:1]
    prior = standard_normal(model.latent_shape)
    chain = ChainConfig(steps=3, schedule="constant", step_size=0.3)
    actual = change_of_variables.evaluate(model.gen, prior, chain, params, [chosen], KEY, draws=4)
    modes, likelihood = blocks(setting, "sri", short_run=actual)
    value = {row.name: (row.value, row.ours) for row in modes[0].rows}
    assert len(actual.id_e) == 5 and value["nll"][0] == pytest.approx(actual.scores.nll_e.mean())
    assert value["ppl"][0] == pytest.approx(np.exp(actual.scores.nll_e.sum() / (5 * 5)), rel=1e-6)
    assert value["nll"][1] == pytest.approx(likelihood.scores.nll_e.mean())
    assert value["kl"][0] + value["rec"][0] > value["nll"][0]
    (without,) = blocks(setting, "sri")[0]
    assert [row.value for row in without.rows] == [None] and "encoder" in without.rows[0].unit


def test_the_card_prints_them_apart_with_their_warnings(setting):
    modes, _ = blocks(setting, "della", "optimus")
    report = Report("test", Card())
    report.compat = modes
    lines = report.table().splitlines()
    assert sum(line.startswith("warning: ") for line in lines) == 2
    assert any(line.startswith("optimus  ppl") and "2.5" in line for line in lines)
    assert report.as_dict()["compat"]["della"]["metrics"]["ppl"]["ours"] == 2.5
    assert "no bound" in report.as_dict()["compat"]["della"]["warning"]
    assert report.as_dict()["metrics"] == {}
