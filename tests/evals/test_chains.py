"""Metrics of models without an encoder, on a linear-Gaussian model whose likelihood is known."""

import dataclasses

import jax
import numpy as np
import pytest

from jvae.api import Sampler
from jvae.evals import change_of_variables
from jvae.evals.card import Card, Report
from jvae.evals.latent import collect_posteriors, latent_metrics, unit_covariance
from jvae.evals.likelihood import evaluate_likelihood
from jvae.latent import mixture, short_run
from jvae.latent.priors import standard_normal
from jvae.latent.short_run import ChainConfig

WIDTH = 4


@pytest.fixture(scope="module")
def case(toys):
    """x = z + noise of variance 0.5, so the posterior is N(x / 1.5, 1 / 3) in each dimension."""

    def make(count):
        model, params, exact = toys.linear_gaussian(WIDTH, count)
        return (
            model._replace(prior=standard_normal((1, WIDTH))),
            params,
            exact,
            toys.id_batches(range(count), count),
        )

    return make


def _contracting(factor, steps=4):
    """Steps that shrink distances by `factor` in all; the log joint has curvature 3."""
    size = float(np.sqrt(2 / 3 * (1 - factor ** (1 / steps))))
    return ChainConfig(steps=steps, schedule="constant", step_size=size)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_change_of_variables_is_exact_where_end_points_are_wide(case, temperature):
    model, params, exact, batches = case(50)
    actual = change_of_variables.evaluate(
        model.gen,
        model.prior,
        _contracting(0.75),
        params,
        batches,
        jax.random.key(0),
        draws=2_000,
        temperature=temperature,
    )
    row = actual.summary()
    assert abs(row["nll_nats"] - exact.mean()) < 0.02
    assert change_of_variables.alarm(actual) is None
    np.testing.assert_allclose(row["neg_elbo_nats"], row["rec_nats"] + row["kl_nats"], rtol=1e-6)
    assert row["neg_elbo_nats"] > row["nll_nats"]


def test_change_of_variables_raises_the_alarm_where_they_are_narrow(case):
    model, params, exact, batches = case(50)
    actual = change_of_variables.evaluate(
        model.gen, model.prior, _contracting(0.01), params, batches, jax.random.key(0), draws=500
    )
    row = actual.summary()
    assert row["nll_nats"] > exact.mean() + 0.3
    warning = change_of_variables.alarm(actual)
    assert warning is not None and "narrower than the posterior" in warning


CHAIN = ChainConfig(steps=40, schedule="constant", step_size=0.4, temperature=1.0)


def _with_chain(model, chain):
    metric = short_run.fitted(model.gen, model.prior, chain)
    sampler = Sampler(
        measure=None,
        metric=metric,
        baseline=None,
        proposal=mixture.with_prior(model.prior, metric),
        tune=None,
        config=chain,
    )
    post = short_run.attach(model.gen, model.prior, chain)
    return model._replace(post=post._replace(sampler=sampler))


@pytest.mark.slow
def test_fitted_proposal_bounds_the_likelihood_closely_for_every_k(case):
    model, params, exact, batches = case(60)
    chain = _with_chain(model, CHAIN)
    key = jax.random.key(1)
    actual = evaluate_likelihood(
        chain, params, batches, key, 200, chunk=10, proposal=chain.proposal
    )
    row = actual.summary()
    assert -0.03 < row["nll_nats"] - exact.mean() < 0.06
    assert row["nll_nats_at"][10] > row["nll_nats"]
    # Rec and KL are those of the fit, though half of the draws are the prior's.
    posts = collect_posteriors(chain, params, batches, key)
    mean, var = posts.post.mean_egz, np.exp(posts.post.log_var_egz)
    x = np.asarray(params["x"])
    rec = np.sum(((x - mean) ** 2 + var) + 0.5 * np.log(np.pi), axis=(1, 2))
    np.testing.assert_allclose(row["rec_nats"], rec.mean(), atol=0.1)
    np.testing.assert_allclose(row["kl_nats"], posts.kl_e.mean(), rtol=1e-3)


def test_draws_from_the_prior_bound_the_likelihood_without_a_posterior(case):
    """Even where the posterior is far off, and closer with more of them."""
    model, params, exact, batches = case(60)
    key, proposal = jax.random.key(3), mixture.from_prior(model.prior)
    astray = model._replace(post=_with_chain(model, CHAIN).metric_post)
    actual = [
        evaluate_likelihood(chain_model, params, batches, key, 2_000, chunk=100, proposal=proposal)
        for chain_model in (model, astray)
    ]
    row = actual[0].summary()
    assert -0.03 < row["nll_nats"] - exact.mean() < 0.1
    assert row["nll_nats_at"][10] > row["nll_nats"] + 0.1
    np.testing.assert_allclose(actual[1].scores.nll_e, actual[0].scores.nll_e, rtol=1e-5)


@pytest.mark.slow
def test_active_units_need_two_sets_of_chains_to_agree(case):
    model, params, _, batches = case(600)
    key = jax.random.key(2)
    results = {}
    for name, chain in (("chain", CHAIN), ("prior", dataclasses.replace(CHAIN, steps=0))):
        built = _with_chain(model, chain)
        posts = collect_posteriors(built, params, batches, key)
        results[name] = latent_metrics(built, params, posts)
    assert results["chain"].active[0.01] == WIDTH
    assert results["prior"].active[0.01] == 0
    assert results["chain"].mi_nats > results["prior"].mi_nats + 0.5
    # One set alone would call the noise of prior draws active.
    assert np.all(unit_covariance(posts.mean_egz) > 0.01)

    report = Report("toy", Card())
    report.add_latent(results["chain"], results["prior"], None, results["prior"], "chain = prior")
    assert {row.name: row.baseline for row in report.rows}["au_0.01"] == 0
    noisy = Report("toy", Card())
    noisy.add_latent(results["chain"], results["prior"], None, results["chain"])
    assert {row.name: row.value for row in noisy.rows}["au_0.01"] is None
    assert "draws from the prior give" in noisy.notes[0]
