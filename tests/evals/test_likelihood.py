import collections
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals.cost import bare_passes, cost_ratio
from jvae.evals.exact import excess_over_exact
from jvae.evals.likelihood import (
    TextCounts,
    draw_sentences,
    evaluate_likelihood,
    spot_row,
    text_counts,
)
from jvae.latent.elbo import measure
from jvae.latent.iw_bound import score_batch

KEY = jax.random.key(7)


def test_linear_gaussian_is_exact_and_exchanged_weights_are_not(toys):
    model, params, exact = toys.linear_gaussian(32, 64)
    batches = toys.id_batches(np.arange(64), 64)
    result = evaluate_likelihood(model, params, batches, KEY, 500, chunk=50)
    error = result.summary()["nll_nats"] - exact.mean()
    assert abs(error) < 0.05
    # The posterior is imperfect enough for one draw to miss the mark that 500 hit.
    assert result.summary()["neg_elbo_nats"] - exact.mean() > 0.1
    assert not any(e.suspicious for e in excess_over_exact(result, exact).values())

    log_q = model.metric_post.log_prob
    exchanged = model.metric_post._replace(
        log_prob=lambda p, post, z: 2 * toys.log_normal(z) - log_q(p, post, z)
    )
    wrong = evaluate_likelihood(model._replace(post=exchanged), params, batches, KEY, 500, chunk=50)
    assert abs(wrong.summary()["nll_nats"] - exact.mean()) > 10
    assert excess_over_exact(wrong, exact)[500].suspicious


def test_all_strings_sum_to_one_and_the_bound_meets_the_quadrature(toys):
    model, params = toys.discrete((1, 1)), toys.discrete_params(1)
    words = toys.all_strings()
    (batch,) = toys.text_batches(words, len(words))
    ctx = model.gen.prepare(params, batch)
    grid = jnp.linspace(-8, 8, 1601)
    log_p_ge = jax.lax.map(
        lambda z: jnp.sum(model.gen.log_lik(params, ctx, jnp.full((81, 1, 1), z)), axis=1), grid
    )
    density = np.exp(-0.5 * np.asarray(grid, np.float64) ** 2) / np.sqrt(2 * np.pi)
    p_e = np.trapezoid(np.exp(np.asarray(log_p_ge, np.float64)) * density[:, None], grid, axis=0)
    assert abs(p_e.sum() - 1) < 1e-5
    # A random encoder may miss the posterior; about as wide as the prior, 500 draws make up for it.
    wide = {**params, "embed": 0.3 * params["embed"], "log_var": jnp.zeros(1)}
    result = evaluate_likelihood(model, wide, [batch], KEY, 500, chunk=100)
    error = result.scores.nll_e + np.log(p_e)
    assert np.abs(error).max() < 0.25 and abs(error.mean()) < 0.02


def same_scores(actual, expected, what, rtol=1e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, err_msg=what), actual, expected
    )


def scores_by_id(model, params, batches, k=23, chunk=23):
    result = evaluate_likelihood(model, params, batches, KEY, k, chunk=chunk, bounds=(1, 5, 10))
    assert result.id_e.tolist() == list(range(13))
    return result.scores


def test_scores_do_not_depend_on_batches_packing_padding_or_chunks(toys):
    model, params, words = toys.discrete(), toys.discrete_params(), toys.all_strings()[::6][:13]
    expected = scores_by_id(model, params, toys.text_batches(words, 13))
    others = {
        "batch size": toys.text_batches(words, 4),
        "padding and empty slots": toys.text_batches(words, 7, pad=6, empty=(0, 3)),
        "packing": toys.text_batches(words, 2, slots=3, pad=2, empty=(1,)),
    }
    for name, batches in others.items():
        same_scores(scores_by_id(model, params, batches), expected, name)
    for chunk in (1, 7):
        actual = scores_by_id(model, params, toys.text_batches(words, 13), chunk=chunk)
        same_scores(actual, expected, f"chunks of {chunk}")


@pytest.mark.multidevice
def test_scores_do_not_depend_on_the_number_of_devices(toys):
    if jax.device_count() < 2:
        pytest.skip(
            "one device only; XLA_FLAGS=--xla_force_host_platform_device_count=8 gives more"
        )
    model, params, words = toys.discrete(), toys.discrete_params(), toys.all_strings()[::6][:13]
    expected = scores_by_id(model, params, toys.text_batches(words, 2, slots=3))
    axis = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=axis, devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = [jax.device_put(batch, rows) for batch in toys.text_batches(words, 2, slots=3)]
    same_scores(scores_by_id(model, params, sharded), expected, "two devices")


def test_one_draw_is_what_training_measures(toys):
    model, params = toys.discrete(), toys.discrete_params()
    (batch,) = toys.text_batches(toys.all_strings()[::6][:13], 13)
    terms = jax.jit(lambda p, b: measure(model, p, b, KEY))(params, batch)
    scores = score_batch(model, 1)(params, batch, KEY)
    np.testing.assert_allclose(scores.rec_e, terms.nll_e, rtol=1e-6)
    np.testing.assert_allclose(scores.kl_e, terms.kl_e, rtol=1e-6)
    np.testing.assert_allclose(scores.kl_e, terms.kl_egz.sum((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(scores.scored_e, terms.scored_e)
    np.testing.assert_allclose(scores.ess_e, 1.0, rtol=1e-6)


def test_bounds_tighten_in_the_mean(toys):
    model, params, _ = toys.linear_gaussian(16, 200)
    params = {**params, "log_var": params["log_var"] + 0.6}
    result = evaluate_likelihood(
        model, params, toys.id_batches(np.arange(200), 100), KEY, 500, chunk=50
    )
    summary = result.summary()
    at = summary["nll_nats_at"]
    assert list(at) == [1, 10, 100, 500] and at[500] == summary["nll_nats"]
    assert at[1] > at[10] > at[100] > at[500]
    # -ELBO and NLL_1 have one expectation: paired, they differ by noise only.
    gap = result.scores.rec_e + result.scores.kl_e - result.scores.bound_e[1]
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(200)
    assert summary["neg_elbo_nats"] > at[10]
    assert 1 <= summary["ess"] <= 500


def test_prefix_bounds_are_shorter_runs(toys):
    model, params, words = toys.discrete(), toys.discrete_params(), toys.all_strings()[::6][:13]
    batches = toys.text_batches(words, 13)
    long = scores_by_id(model, params, batches, chunk=7)
    for k in (1, 5):
        short = evaluate_likelihood(model, params, batches, KEY, k, chunk=k)
        np.testing.assert_allclose(long.bound_e[k], short.scores.nll_e, rtol=1e-5)


@pytest.mark.slow
def test_without_a_closed_form_the_kl_is_that_of_the_draws(toys):
    params = {"mean": jnp.ones((4, 1, 3)), "log_var": jnp.full((4, 1, 3), -0.7)}
    batches = toys.id_batches(np.arange(4), 4)
    exact = evaluate_likelihood(toys.table_model((1, 3)), params, batches, KEY, 2)
    actual = evaluate_likelihood(
        toys.table_model((1, 3), closed_form=False), params, batches, KEY, 4000, chunk=1000
    )
    np.testing.assert_allclose(actual.scores.kl_e, exact.scores.kl_e, atol=0.1)
    assert not np.allclose(actual.scores.kl_e, exact.scores.kl_e, rtol=1e-6)


def test_a_latent_split_into_layers_scores_the_same(toys):
    params, words = toys.discrete_params(4), toys.all_strings()[::9]
    (batch,) = toys.text_batches(words, len(words))
    one = score_batch(toys.discrete((1, 4)), 20)(params, batch, KEY)
    four = score_batch(toys.discrete((4, 1)), 20)(params, batch, KEY)
    same_scores(four, one, "split", rtol=1e-5)


def test_without_a_latent_the_likelihood_is_exact_for_every_k(toys):
    params, words = toys.discrete_params(0), toys.all_strings()
    calls = collections.Counter()
    model = toys.discrete((0, 0), count=lambda name: calls.update([name]))
    result = evaluate_likelihood(model, params, toys.text_batches(words, 81), KEY, 100)
    jax.effects_barrier()
    assert calls["log_lik"] == 1
    assert abs(np.exp(-result.scores.nll_e.astype(np.float64)).sum() - 1) < 1e-5
    assert not result.scores.kl_e.any()
    summary = result.summary()
    assert summary["ess"] is None and not summary["loose"]
    assert summary["nll_nats_at"] == dict.fromkeys((1, 10, 100), summary["rec_nats"])


def test_encoder_and_preparation_run_once_and_the_decoder_k_times(toys):
    calls = collections.Counter()
    model = toys.discrete(count=lambda name: calls.update([name]))
    (batch,) = toys.text_batches(toys.all_strings()[:3], 3)
    jax.block_until_ready(score_batch(model, 11, chunk=4)(toys.discrete_params(), batch, KEY))
    jax.effects_barrier()
    assert calls == {"encode": 1, "prepare": 1, "log_lik": 11}


def test_compiled_once_for_batches_and_parameters_of_one_shape(toys):
    traces = []
    model = toys.discrete()
    log_lik = model.gen.log_lik
    gen = model.gen._replace(log_lik=lambda *args: traces.append(1) or log_lik(*args))
    batches = toys.text_batches(toys.all_strings()[:12], 4)
    for seed in range(2):
        params = toys.discrete_params(seed=seed)
        evaluate_likelihood(model._replace(gen=gen), params, batches, KEY, 6, chunk=3)
    assert len(traces) == 1


def test_sentences_come_exactly_once(toys):
    model, params = toys.discrete(), toys.discrete_params()
    batches = toys.text_batches(toys.all_strings()[:4], 4)
    with pytest.raises(DataError, match=r"4 sentences occur more than once \(ids \[0, 1, 2, 3\]\)"):
        evaluate_likelihood(model, params, batches * 2, KEY, 2)
    with pytest.raises(DataError, match="no sentence in any batch"):
        evaluate_likelihood(model, params, [], KEY, 2)


def test_arguments_are_checked(toys):
    model = toys.discrete()
    with pytest.raises(ValueError, match="k=0"):
        score_batch(model, 0)
    blind = model._replace(post=model.post._replace(log_prob=None))
    with pytest.raises(ValueError, match="the model's metric posterior has no density"):
        score_batch(blind, 2)


def test_perplexities_convert_through_the_counts(toys):
    lines = ["a b c", "tiny ünïcode\n", "x"]
    counts = text_counts(lines)
    assert counts.words_e.tolist() == [3, 2, 1] and counts.chars_e.tolist() == [5, 12, 1]
    model, params = toys.discrete(), toys.discrete_params()
    batches = toys.text_batches(toys.all_strings()[:3], 3)
    s = evaluate_likelihood(model, params, batches, KEY, 4).summary(counts)
    total = s["nll_nats"] * 3
    assert (s["words_with_end"], s["tokens_with_end"], s["chars_with_end"]) == (9, 12, 21)
    assert np.log(s["ppl_w"]) * 9 == pytest.approx(total, rel=1e-9)
    assert np.log(s["ppl_t"]) * 12 == pytest.approx(total, rel=1e-9)
    assert s["bpc"] * np.log(2) * 21 == pytest.approx(total, rel=1e-9)


def test_counts_follow_the_ids_of_a_subset(toys):
    model, params, _ = toys.linear_gaussian(2, 8)
    result = evaluate_likelihood(model, params, toys.id_batches([6, 2], 3), KEY, 3)
    counts = TextCounts(np.arange(8), 10 * np.arange(8))
    s = result.summary(counts)
    assert result.id_e.tolist() == [2, 6]
    assert (s["words_with_end"], s["chars_with_end"]) == (10, 82)


def test_the_quick_set_is_seeded_and_ascending():
    ids = draw_sentences(1000, 500)
    assert ids.tolist() == sorted(set(ids.tolist())) and ids.size == 500
    np.testing.assert_array_equal(ids, draw_sentences(1000, 500))
    assert draw_sentences(20, 500).tolist() == list(range(20))


def test_cost_is_that_of_k_passes(toys, monkeypatch):
    calls = collections.Counter()
    model = toys.discrete(count=lambda name: calls.update([name]))
    params = toys.discrete_params()
    (batch,) = toys.text_batches(toys.all_strings()[:3], 3)
    passes = bare_passes(model, params, batch, KEY, 5, chunk=2)
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(passes())
    jax.effects_barrier()
    assert calls == {"log_lik": 5}
    # On this clock the whole takes one second, its encoder half of one, the passes two.
    ticks = iter([0, 1, 0, 0.5, 0, 2] * 3)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert cost_ratio(model, params, batch, KEY, 5, chunk=2) == (0.5, 0.25)


def test_a_spot_check_says_what_more_draws_gain(toys):
    model, params, _ = toys.linear_gaussian(2, 8)
    actual = evaluate_likelihood(model, params, toys.id_batches(np.arange(8), 8), KEY, 20)
    row = spot_row(actual, 10)
    assert row["name"] == "nll_20" and row["value"] == actual.summary()["nll_nats"]
    assert row["note"] == (
        f"8 sentences; with K = 10 these have {actual.scores.bound_e[10].mean():.2f}"
    )
