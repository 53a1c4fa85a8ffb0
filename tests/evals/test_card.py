import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.evals.card import Card, Report, aligned, clean, file_record, ids_hash, show
from jvae.evals.latent import RecGap, collect_posteriors, latent_metrics
from jvae.evals.likelihood import evaluate_likelihood, text_counts

KEY = jax.random.key(1)


def results(toys, params):
    model, words = toys.discrete((1, 2)), toys.all_strings()[:20]
    batches = toys.text_batches(words, 20)
    posts = collect_posteriors(model, params, batches, KEY)
    likelihood = evaluate_likelihood(model, params, batches, KEY, 12, chunk=4)
    return likelihood, latent_metrics(model, params, posts)


def report(toys):
    """Everything measured anew; returns the report, the latent metrics and their baseline."""
    likelihood, latent = results(toys, toys.discrete_params())
    _, baseline = results(toys, toys.discrete_params(seed=1))
    card = Report("test", Card(commit="abc", preset="quick", seeds={"draws": 1}))
    counts = text_counts(["a b c d"] * 20)
    card.add_likelihood(likelihood, counts, rec_other_nats=9.5)
    card.add_latent(latent, baseline, RecGap(9.5, 0.25, 0.01))
    card.add_group({"exact_match_pct": 75.0, "bleu": 50.0, "bleu_signature": "sig"}, prefix="rec_")
    return card, latent, baseline


def test_json_is_deterministic_sorted_and_separates_time(toys):
    first, *_ = report(toys)
    second, *_ = report(toys)
    first.time["wall_s"] = 1.0
    second.time["wall_s"] = 2.0
    a, b = json.loads(first.to_json()), json.loads(second.to_json())
    assert a.pop("time") != b.pop("time")
    assert json.dumps(a) == json.dumps(b) and list(a) == sorted(a)
    assert a["card"]["k"] == 12 and a["card"]["words_with_end"] == 100
    assert a["card"]["sentences_hash"] == ids_hash(np.arange(20))
    assert a["card"]["signatures"] == {"rec_bleu": "sig"}
    assert a["metrics"]["rec_exact_match"] == {
        "value": 75.0,
        "unit": "%",
        "se": None,
        "baseline": None,
        "note": "",
    }
    assert a["title"] == "test (quick, K = 12, 20 sentences)"


def test_latent_metrics_stand_beside_their_baseline(toys):
    card, latent, baseline = report(toys)
    rows = {row.name: row for row in card.rows}
    assert rows["mi"].baseline == baseline.mi_nats != latent.mi_nats == rows["mi"].value
    assert rows["kl"].baseline == baseline.kl_nats and rows["rec"].baseline == 9.5
    assert rows["au_0.01"].baseline == baseline.active[0.01]
    assert card.card.baselines == {"latent": "untrained model"}
    with pytest.raises(ValueError, match="without their baseline"):
        Report("test", Card()).add_latent(latent, None)
    noisy = Report("test", Card())
    noisy.add_latent(latent, baseline, prior=latent)
    assert {row.name: row.value for row in noisy.rows}["au_0.01"] is None and noisy.notes


def test_the_table_is_aligned_and_says_what_it_rests_on(toys):
    card, *_ = report(toys)
    card.time["cost_ratio"] = 1.25
    lines = card.table().splitlines()
    assert lines[0] == "test (quick, K = 12, 20 sentences)"
    head = lines[2]
    for row, line in zip(card.rows, lines[3:], strict=False):
        assert line.startswith(row.name) and line[head.index("value") - 1] == " "
        assert line[head.index("baseline") :].startswith(show(row.baseline))
    assert "cost_ratio  1.25" in lines
    assert any(line.startswith("preset") and line.endswith("quick") for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_a_saturated_value_and_a_collapse_are_said(toys):
    params = {
        "mean": 3.0 * jnp.arange(9.0)[:, None, None],
        "log_var": jnp.full((9, 1, 1), -8.0),
    }
    model = toys.table_model((1, 1))
    posts = collect_posteriors(model, params, toys.id_batches(np.arange(9), 9), KEY)
    latent = latent_metrics(model, params, posts)
    card = Report("test", Card())
    card.add_latent(latent, latent, RecGap(1.0, 0.01, 0.0))
    assert f"≥ {latent.mi_nats:.2f} (saturated)" in card.table()
    assert card.as_dict()["details"]["latent"]["saturated"] is True
    assert card.as_dict()["metrics"]["collapsed"]["value"] is True
    assert "another sentence's latent costs less" in card.table()


def test_a_model_without_a_latent_prints_dashes(toys):
    model, params = toys.discrete((0, 0)), toys.discrete_params(0)
    batches = toys.text_batches(toys.all_strings()[:5], 5)
    likelihood = evaluate_likelihood(model, params, batches, KEY, 3)
    card = Report("test", Card())
    card.add_likelihood(likelihood)
    card.add_latent(None, None)
    metrics = card.as_dict()["metrics"]
    assert metrics["mi"]["value"] is None and metrics["ppl_w"]["value"] is None
    assert metrics["nll_3"]["value"] == metrics["rec"]["value"]
    line = next(line for line in card.table().splitlines() if line.startswith("mi "))
    assert line.split() == ["mi", "-", "-", "-"]


def test_loose_bounds_and_infinities_are_noted(toys):
    model, params, _ = toys.linear_gaussian(16, 4)
    params = {**params, "log_var": params["log_var"] + 2}
    likelihood = evaluate_likelihood(model, params, toys.id_batches(np.arange(4), 4), KEY, 20)
    card = Report("test", Card())
    card.add_likelihood(likelihood)
    assert any("bound is loose" in note for note in card.notes)
    likelihood.scores.nll_e[0] = np.inf
    card = Report("test", Card())
    card.add_likelihood(likelihood)
    assert card.as_dict()["metrics"]["nll_20"]["value"] is None
    assert "1 sentences have no finite NLL; means over them are dashes." in card.notes


def test_one_row_per_metric():
    card = Report("test", Card())
    card.add("x", 1, "")
    with pytest.raises(ValueError, match="two rows are named 'x'"):
        card.add("x", 2, "")


def test_values_become_plain_json():
    actual = clean({1: np.float32("nan"), "b": jnp.arange(2), "c": (np.int64(3), np.bool_(True))})
    assert actual == {"1": None, "b": [0, 1], "c": [3, True]}
    assert clean(RecGap(None, float("inf"), 1.0))["gap_nats"] is None
    assert [show(v) for v in (None, float("nan"), 3, 12.25, 0.0123, 0.0)] == [
        "-",
        "-",
        "3",
        "12.25",
        "0.0123",
        "0.00",
    ]
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]


def test_data_files_are_identified(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"one\ntwo")
    digest = hashlib.sha256(b"one\ntwo").hexdigest()
    assert file_record(path) == {"name": "test.txt", "sha256": digest, "lines": 2}
    path.write_bytes(b"one\ntwo\n")
    assert file_record(path)["lines"] == 2
    assert ids_hash(np.array([2, 1])) == ids_hash(np.array([1, 2])) != ids_hash(np.array([1, 3]))
