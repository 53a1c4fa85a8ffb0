import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals.latent import (
    RecGap,
    collapse_reasons,
    collect_posteriors,
    gaussian_entropy,
    latent_metrics,
    log_aggregate,
    rec_gap,
    unit_covariance,
)
from jvae.evals.likelihood import evaluate_likelihood
from jvae.latent.gaussian import StandardNormal, kl_standard
from jvae.latent.kl import closed_form

KEY = jax.random.key(3)


def random_tables(shape, count=200, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0, 0.8, size=shape)  # some units active, some not
    return {
        "mean": jnp.asarray(rng.normal(size=(count, *shape)) * scale, jnp.float32),
        "log_var": jnp.asarray(rng.normal(size=(count, *shape)) * 0.3 - 0.5, jnp.float32),
    }


def slow_metrics(posts, params):
    """One pair of sentences at a time, float64."""
    mean = np.asarray(params["mean"], np.float64).reshape(len(posts.id_e), -1)
    log_var = np.asarray(params["log_var"], np.float64).reshape(mean.shape)
    z = posts.z_egz.astype(np.float64).reshape(mean.shape)
    count = len(mean)
    mi = 0.0
    for i in range(count):
        densities = []
        for j in range(count):
            square = (z[i] - mean[j]) ** 2 / np.exp(log_var[j])
            densities.append(-0.5 * np.sum(np.log(2 * np.pi) + log_var[j] + square))
        top = max(densities)
        marginal = top + np.log(sum(np.exp(d - top) for d in densities) / count)
        mi += (densities[i] - marginal) / count
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)
    variance = [sum((v - sum(m) / count) ** 2 for v in m) / (count - 1) for m in mean.T]
    return mi, kl.mean(0), np.array(variance)


class _Chained(NamedTuple):
    """Form of posteriors with a closed-form KL and no closed-form entropy, such as chains."""


@closed_form(_Chained, StandardNormal)
def _kl_chained(params, posterior, post, z_egz, prior, cond):
    return kl_standard(post)


@pytest.mark.parametrize("shape, chained", [((1, 6), False), ((3, 2), False), ((3, 2), True)])
def test_metrics_equal_a_slow_version_on_random_posteriors(toys, shape, chained):
    params, model = random_tables(shape), toys.table_model(shape)
    if chained:
        model = model._replace(post=model.post._replace(form=_Chained()))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(200), 64), KEY)
    actual = latent_metrics(model, params, posts, block=96, draws=7)
    mi, kl, variance = slow_metrics(posts, params)
    assert actual.mi_nats == pytest.approx(mi, rel=1e-4)
    np.testing.assert_allclose(actual.kl_profile_gz.ravel(), kl, rtol=1e-4)
    np.testing.assert_allclose(actual.variance_gz.ravel(), variance, rtol=1e-4)
    assert actual.marginal_gap_nats == pytest.approx(kl.sum() - mi, rel=1e-3)
    for limit in (0.01, 0.2):
        assert actual.active[limit] == np.sum(variance > limit)
        groups = np.sum(variance.reshape(shape) > limit, axis=1).tolist()
        assert actual.active_per_group[limit] == groups
    assert actual.active[0.01] > actual.active[0.2] > 0
    assert actual.kl_profile_sorted == sorted(actual.kl_profile_sorted, reverse=True)
    assert actual.mi_nats < actual.kl_nats and actual.mi_nats < actual.ceiling_nats == np.log(200)
    assert not actual.saturated and not collapse_reasons(actual)


def test_blocks_and_batches_change_nothing(toys):
    params, model = random_tables((2, 2), count=30), toys.table_model((2, 2), closed_form=False)
    results = []
    for size, block, draws in ((30, 256, 64), (7, 4, 30), (30, 30, 1)):
        posts = collect_posteriors(model, params, toys.id_batches(np.arange(30), size), KEY)
        results.append(latent_metrics(model, params, posts, block, draws))
    for result in results[1:]:
        assert result.mi_nats == pytest.approx(results[0].mi_nats, rel=1e-5)
        assert result.kl_nats == pytest.approx(results[0].kl_nats, rel=1e-5)
    assert results[0].kl_profile_gz is None and results[0].kl_profile_sorted is None


@pytest.mark.slow
def test_packing_changes_no_latent_metric(toys):
    model, params, words = toys.discrete(), toys.discrete_params(), toys.all_strings()[::6][:13]
    actual = []
    for batches in (
        toys.text_batches(words, 13),
        toys.text_batches(words, 2, slots=3, pad=2, empty=(1,)),
    ):
        posts = collect_posteriors(model, params, batches, KEY)
        likelihood = evaluate_likelihood(model, params, batches, KEY, 6, chunk=6)
        gap = rec_gap(model, params, batches, posts, likelihood, KEY, chunk=6)
        actual.append((latent_metrics(model, params, posts), gap))
    (a, gap_a), (b, gap_b) = actual
    assert b.mi_nats == pytest.approx(a.mi_nats, rel=1e-4)
    np.testing.assert_allclose(b.variance_gz, a.variance_gz, rtol=1e-4)
    np.testing.assert_allclose(gap_b, gap_a, rtol=1e-4)
    assert gap_a.gap_nats == pytest.approx(
        gap_a.rec_other_nats - likelihood.summary()["rec_nats"], rel=1e-4
    )


def test_separate_posteriors_saturate(toys):
    params = {
        "mean": jnp.arange(20.0)[:, None, None] * jnp.ones((20, 1, 1)),
        "log_var": jnp.full((20, 1, 1), -8.0),
    }
    model = toys.table_model((1, 1))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(20), 20), KEY)
    actual = latent_metrics(model, params, posts)
    assert actual.saturated and abs(actual.mi_nats - np.log(20)) < 0.4
    assert actual.mi_nats < actual.kl_nats


def counting_params():
    """Word 2 is likely under a large z, word 0 under a small one; the encoder counts just that."""
    return {
        "embed": jnp.asarray([[-3.0], [0.0], [3.0], [0.0]]),
        "log_var": jnp.full((1,), -2.0),
        "prev": jnp.zeros((4, 3)),
        "out": jnp.asarray([[-3.0, 0.0, 3.0]]),
    }


def dead_or_alive(toys, params, reads_z=True):
    model, words = toys.discrete((1, 1), reads_z=reads_z), toys.all_strings()
    batches = toys.text_batches(words, len(words))
    posts = collect_posteriors(model, params, batches, KEY)
    likelihood = evaluate_likelihood(model, params, batches, KEY, 50, chunk=50)
    gap = rec_gap(model, params, batches, posts, likelihood, KEY, chunk=50)
    return latent_metrics(model, params, posts), gap


def test_a_posterior_equal_to_the_prior_raises_the_flag(toys):
    params = toys.discrete_params(1)
    params = {**params, "embed": 0 * params["embed"], "log_var": 0 * params["log_var"]}
    result, gap = dead_or_alive(toys, params)
    assert result.active == {0.01: 0, 0.2: 0}
    # The same draws in both terms: nothing is left of their noise.
    assert abs(result.mi_nats) < 1e-5 and result.mi_nats_se < 1e-5 and result.kl_nats == 0
    assert len(collapse_reasons(result)) == 3
    assert len(collapse_reasons(result, gap)) == 4


def test_noise_of_the_estimator_does_not_hide_a_collapse(toys):
    """32 dead dimensions: with the analytic entropy in place of the draws' own density, the noise
    of the draws alone is more than the threshold.
    """
    shape = (1, 32)
    model, zero = toys.table_model(shape), jnp.zeros((100, *shape))
    batches = toys.id_batches(np.arange(100), 100)
    former = []
    for seed in range(3):
        params, key = {"mean": zero, "log_var": zero}, jax.random.key(seed)
        posts = collect_posteriors(model, params, batches, key)
        result = latent_metrics(model, params, posts)
        entropy_e = gaussian_entropy(model.metric_post, posts.post)
        former.append(np.mean(-entropy_e - log_aggregate(model, params, posts)))
        assert abs(result.mi_nats) < 1e-4
        assert "MI within 0.1 nat of 0.00" in collapse_reasons(result)
    assert max(np.abs(former)) > 0.1


def test_the_threshold_is_two_errors_at_least(toys):
    """An estimate of 0.3 with an error of 0.2 cleared a model."""
    params, model = random_tables((1, 2), count=20), toys.table_model((1, 2))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(20), 20), KEY)
    sure = dataclasses.replace(
        latent_metrics(model, params, posts), kl_nats=2.0, kl_nats_se=0.1, mi_nats=0.3
    )
    sure = dataclasses.replace(sure, mi_nats_se=0.01)
    assert not collapse_reasons(sure, RecGap(1.0, 0.3, 0.01))
    assert collapse_reasons(dataclasses.replace(sure, mi_nats_se=0.2)) == [
        "MI within 0.4 nat of 0.00"
    ]
    (reason,) = collapse_reasons(sure, RecGap(1.0, 0.3, 0.2))
    assert reason == "another sentence's latent costs less than 0.4 nat"
    # The error of a noisy reference counts too.
    prior = dataclasses.replace(sure, kl_nats=0.0, mi_nats=0.0, mi_nats_se=0.2)
    assert len(collapse_reasons(sure, prior=prior)) == 1
    assert collapse_reasons(dataclasses.replace(sure, mi_nats=float("nan"))) != []


def test_a_decoder_that_ignores_the_latent_raises_the_flag(toys):
    result, gap = dead_or_alive(toys, counting_params(), reads_z=False)
    assert gap.gap_nats == pytest.approx(0, abs=1e-5)
    assert not collapse_reasons(result)
    (reason,) = collapse_reasons(result, gap)
    assert reason.startswith("another sentence's latent")


def test_a_used_latent_does_not_raise_the_flag(toys):
    result, gap = dead_or_alive(toys, counting_params())
    assert gap.gap_nats > 1
    assert not collapse_reasons(result, gap)


def test_the_reference_of_the_flag_can_be_a_noisy_prior(toys):
    params = random_tables((1, 2), count=20)
    model = toys.table_model((1, 2))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(20), 20), KEY)
    result = latent_metrics(model, params, posts)
    reasons = collapse_reasons(result, RecGap(1.0, 0.5, 0.1), prior=result)
    assert len(reasons) == 2 and reasons[0].startswith("KL") and reasons[1].startswith("MI")


def test_no_sentence_keeps_its_own_latent(toys):
    params, model = random_tables((1, 2), count=50), toys.table_model((1, 2))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(50), 50), KEY)
    other = posts.other()
    assert sorted(other) == list(range(50)) and not np.any(other == np.arange(50))
    np.testing.assert_array_equal(other, posts.other())
    alone = collect_posteriors(model, params, toys.id_batches([3], 1), KEY)
    with pytest.raises(DataError, match="at least 2"):
        alone.other()
    with pytest.raises(DataError, match="at least 2"):
        latent_metrics(model, params, alone)


def test_the_cap_keeps_the_first_sentences(toys):
    params, model = random_tables((1, 2), count=12), toys.table_model((1, 2))
    batches = toys.id_batches(np.arange(12)[::-1], 5)
    posts = collect_posteriors(model, params, batches, KEY, cap=8)
    assert posts.id_e.tolist() == list(range(8))
    np.testing.assert_allclose(posts.mean_egz, params["mean"][:8], rtol=1e-6)
    np.testing.assert_allclose(posts.post.log_var_egz, params["log_var"][:8], rtol=1e-6)
    likelihood = evaluate_likelihood(model, params, batches, KEY, 1)
    with pytest.raises(DataError, match="not among the collected posteriors"):
        rec_gap(model, params, batches, posts, likelihood, KEY)


def test_covariance_of_two_sets_cancels_noise():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(4000, 1, 2)) * [1.0, 0.0]
    a, b = (signal + rng.normal(size=signal.shape) for _ in range(2))
    np.testing.assert_allclose(unit_covariance(a), [[2.0, 1.0]], rtol=0.1)
    np.testing.assert_allclose(unit_covariance(a, b), [[1.0, 0.0]], atol=0.06)


def test_without_a_latent_there_are_no_latent_metrics(toys):
    model, params = toys.discrete((0, 0)), toys.discrete_params(0)
    batches = toys.text_batches(toys.all_strings()[:5], 5)
    posts = collect_posteriors(model, params, batches, KEY)
    assert posts.mean_egz.shape == (5, 0, 0) and not posts.kl_e.any()
    assert latent_metrics(model, params, posts) is None
    likelihood = evaluate_likelihood(model, params, batches, KEY, 3)
    assert rec_gap(model, params, batches, posts, likelihood, KEY) == RecGap(None, None, None)
