"""Config checks and logits processors against slow NumPy and against the official filtering."""

import dataclasses
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.decode import sampling
from jvae.decode.sampling import DecodeConfig
from jvae.errors import ConfigError

FIXTURE = pathlib.Path(__file__).parents[1] / "parity" / "optimus" / "metrics_seed0.npz"


@pytest.mark.parametrize(
    "wrong",
    [
        dict(method="nucleus"),
        dict(temperature=0.0),
        dict(temperature=float("nan")),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(repetition_penalty=-1.0),
        dict(min_length=-1),
        dict(max_length=0),
        dict(max_length=True),
        dict(beam_width=0),
        dict(length_penalty=float("inf")),
        dict(norm_length="mean"),
        dict(early_stopping="soon"),
        dict(min_length=9, max_length=8),
    ],
)
def test_config_names_the_wrong_key(wrong):
    with pytest.raises(ConfigError, match=rf"decode\.{next(iter(wrong))} is "):
        DecodeConfig(**wrong)


@pytest.mark.parametrize("wrong", [dict(top_k=2.0), dict(early_stopping=True), dict(top_p="1")])
def test_config_checks_types(wrong):
    """Past the constructor, where the type checks of a test run may answer first."""
    fields = types.SimpleNamespace(**{**dataclasses.asdict(DecodeConfig()), **wrong})
    with pytest.raises(ConfigError, match=rf"decode\.{next(iter(wrong))} is "):
        DecodeConfig.__post_init__(fields)  # pyright: ignore[reportArgumentType]


def test_config_is_a_value():
    assert hash(DecodeConfig(top_k=3)) == hash(DecodeConfig(top_k=3))
    assert DecodeConfig(top_k=3) != DecodeConfig(top_k=4)


def _filtered_names():
    with np.load(FIXTURE) as data:
        return [name for name in data if name.startswith("sampling/filtered")]


@pytest.mark.parametrize("name", _filtered_names())
def test_filters_equal_the_official_ones(name):
    """On a vocabulary padded by four columns."""
    with np.load(FIXTURE) as data:
        logits_ev, expected_ev = data["sampling/logits"], data[name]
    match = re.search(r"k(\d+)_p(.+)$", name)
    assert match is not None
    k, p = int(match[1]), float(match[2]) or 1.0  # the official 0 means no top-p
    pad = ((0, 0), (0, 4))
    logits_ev = jnp.asarray(np.pad(logits_ev, pad, constant_values=-np.inf))
    got_ev = sampling.keep_top_p(sampling.keep_top_k(logits_ev, k), p, among=k)
    np.testing.assert_array_equal(got_ev, np.pad(expected_ev, pad, constant_values=-np.inf))


def _slow_top_p(logits, p):
    order = np.argsort(-logits, kind="stable")
    prob = np.exp(logits - np.max(logits))
    prob /= np.sum(prob)
    kept, mass = np.full_like(logits, -np.inf), 0.0
    for token in order:
        if mass > p:
            break
        kept[token] = logits[token]
        mass += prob[token]
    return kept


@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_top_p_with_ties_equals_slow_numpy(k):
    """Logits on a coarse grid tie often, also across the edge of top-k."""
    rng = np.random.default_rng(0)
    logits_ev = (np.round(rng.normal(size=(40, 12)) * 2) / 2).astype(np.float32)
    logits_ev[:, 9:] = -np.inf
    top_ev = np.array(sampling.keep_top_k(jnp.asarray(logits_ev), k))
    for p in (0.0501, 0.3001, 0.6003, 0.9501):
        got_ev = sampling.keep_top_p(jnp.asarray(top_ev), p, among=k)
        expected_ev = np.stack([_slow_top_p(row.astype(np.float64), p) for row in top_ev])
        np.testing.assert_array_equal(got_ev, expected_ev.astype(np.float32))


def test_top_k_keeps_ties_and_never_padding():
    logits_ev = jnp.array(
        [[1.0, 2.0, 2.0, 3.0, -jnp.inf], [0.0, -1.0, -jnp.inf, -jnp.inf, -jnp.inf]]
    )
    kept_ev = np.isfinite(sampling.keep_top_k(logits_ev, 2))
    np.testing.assert_array_equal(kept_ev, [[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    kept_ev = np.isfinite(sampling.keep_top_k(logits_ev, 4))
    np.testing.assert_array_equal(kept_ev, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_repetition_penalty_equals_slow_numpy(penalty):
    rng = np.random.default_rng(2)
    score_ev = rng.normal(size=(7, 6)).astype(np.float32)
    score_ev[:, 5] = -np.inf
    token_et, seen_et = rng.integers(0, 6, (7, 8)), rng.random((7, 8)) < 0.4
    got_ev = sampling.penalise_repetition(
        jnp.asarray(score_ev), jnp.asarray(token_et), jnp.asarray(seen_et), penalty
    )
    expected_ev = score_ev.copy()
    for e in range(7):
        for token in set(token_et[e][seen_et[e]].tolist()):
            score = score_ev[e, token]
            expected_ev[e, token] = score * penalty if score < 0 else score / penalty
    np.testing.assert_allclose(got_ev, expected_ev, rtol=1e-6)
    assert not np.any(np.isnan(got_ev))


def test_end_is_forbidden_before_the_minimum():
    score_ev = jnp.zeros((2, 3))
    for emitted in range(4):
        got_ev = sampling.forbid_end(score_ev, emitted, 2, end_id=1)
        assert np.all(np.isneginf(got_ev[:, 1])) == (emitted < 2)
        assert np.all(np.isfinite(got_ev[:, ::2]))


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.5), dict(top_k=2), dict(top_p=0.7), dict(top_k=3, top_p=0.8)]
)
def test_frequencies_follow_the_processed_distribution(options):
    """Pearson's statistic over 4000 draws, below its 0.999 quantile at 3 degrees of freedom."""
    draws = 4000
    logits = np.array([0.3, -0.5, 1.0, 0.1, -np.inf], np.float32)
    cfg = DecodeConfig(method="sample", **options)
    logits_ev = jnp.broadcast_to(jnp.asarray(logits)[None, :], (draws, 5))
    rank_ev = sampling.ranks(logits_ev, 3, jax.random.split(jax.random.key(5), draws), cfg)
    token_e = sampling.best_token(rank_ev)
    scaled = logits.astype(np.float64) / cfg.temperature
    if cfg.top_k:
        scaled = np.where(scaled < np.sort(scaled)[-cfg.top_k], -np.inf, scaled)
    kept = _slow_top_p(scaled, cfg.top_p)
    prob = np.exp(kept) / np.sum(np.exp(kept))
    count = np.bincount(np.asarray(token_e), minlength=5)
    assert np.all(count[prob == 0] == 0)
    live = prob > 0
    assert np.sum((count[live] - draws * prob[live]) ** 2 / (draws * prob[live])) < 16.27


def test_one_pass_equals_separate_passes():
    """Ties, padded columns and large scores included."""
    rng = np.random.default_rng(3)
    model_ev = (10.0 * rng.normal(size=(6, 300))).astype(np.float32)
    model_ev[:, 290:] = -np.inf
    model_ev[1, 5] = model_ev[1, 7] = 60.0
    model_ev[2] += 1e4
    rank_ev = np.where(np.arange(300) == 17, -np.inf, model_ev + rng.gumbel(size=(6, 300)))
    for rank in (model_ev, rank_ev.astype(np.float32)):
        actual, want = (jax.jit(f)(rank, model_ev) for f in (sampling._one_pass, sampling._passes))
        np.testing.assert_array_equal(actual[0], want[0])
        np.testing.assert_allclose(actual[1], want[1], rtol=1e-6)
