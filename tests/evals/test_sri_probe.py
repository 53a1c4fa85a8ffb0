"""Few labels as published: fixed subsets, SGD with halvings, and logistic regression."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from jvae.errors import ConfigError, DataError
from jvae.evals import evaluation, sri_probe
from jvae.evals.card import Card
from jvae.evals.definitions import define
from jvae.evals.settings import EvalConfig
from jvae.evals.sri_probe import Layer, Split


def blobs(count, seed, apart=1.5):
    rng = np.random.default_rng(seed)
    label_e = rng.integers(0, 2, count)
    feature_ed = rng.normal(size=(count, 4)) + apart * (2 * label_e[:, None] - 1) * [1, 0.5, 0, 0]
    return Split(feature_ed, label_e, rng.integers(3, 6, count))


def test_the_step_is_the_gradient():
    split, rng = blobs(7, 0), np.random.default_rng(1)
    layer = Layer(rng.normal(size=(4, 2)), rng.normal(size=2))
    moved = sri_probe._updated(layer, split.feature_ed, split.label_e, 0.1)
    step = 1e-6
    for place in np.ndindex(4, 2):
        nudge = np.zeros((4, 2))
        nudge[place] = step
        up, down = (Layer(layer.kernel_dc + sign * nudge, layer.bias_c) for sign in (1, -1))
        slope = (up.loss(split) - down.loss(split)) / (2 * step)
        assert (layer.kernel_dc - moved.kernel_dc)[place] == pytest.approx(0.1 * slope, abs=1e-7)
    far = sri_probe._updated(layer, 1e4 * split.feature_ed, split.label_e, 1.0)
    parts = (layer.kernel_dc - far.kernel_dc, layer.bias_c - far.bias_c)
    assert np.sqrt(sum((part**2).sum() for part in parts)) == pytest.approx(5.0)


def test_batches_are_of_one_length():
    words_e = np.repeat([3, 4, 9], [40, 33, 1])
    actual = sri_probe._batches(words_e, np.random.default_rng(0))
    assert all(len(set(words_e[ids])) == 1 for ids in actual)
    assert sorted(map(len, actual)) == [1, 1, 8, 32, 32]
    assert sorted(np.concatenate(actual)) == list(range(74))


def test_training_ends_with_the_fifth_halving_at_the_best_weights(monkeypatch):
    rates = []

    def updated(layer, feature_ed, label_e, rate):
        rates.append(rate)
        return Layer(layer.kernel_dc + 100.0, layer.bias_c)

    monkeypatch.setattr(sri_probe, "_updated", updated)
    monkeypatch.setattr(Layer, "loss", lambda self, split: float(self.kernel_dc.max()))
    train = blobs(5, 0)._replace(words_e=np.full(5, 3))
    best = sri_probe.sgd(train, train, 2, 0)
    assert rates == [rate for k in range(5) for rate in [0.5**k] * 2]
    assert best.kernel_dc.max() < 1


def test_it_learns():
    splits = {
        name: blobs(count, i)
        for i, (name, count) in enumerate(dict(train=200, valid=300, test=300).items())
    }
    actual = sri_probe.accuracies(splits, 100)
    assert len(actual) == sri_probe.RUNS and np.std(actual) < 3
    assert (
        np.mean(actual) == pytest.approx(sri_probe._logistic(splits, 100), abs=3)
        and min(actual) > 85
    )


class Vae:
    """Latents that say what a sentence begins with."""

    conditional = False

    def __init__(self, strength, sampler):
        self.strength, self.sampler = strength, sampler

    def encode(self, texts, sources, chains):
        assert chains == (200 if self.sampler else None) and sources is None
        noise = np.random.default_rng(len(texts)).normal(size=(len(texts), 1, 3))
        return noise + self.strength * np.array(
            [[[2.0 * (text[0] == "g") - 1] * 3] for text in texts]
        )


def opened(tmp_path, monkeypatch, sampler=True, size=150):
    def data(count, seed):
        rng = np.random.default_rng(seed)
        labels = ["pos" if number else "neg" for number in rng.integers(0, 2, count)]
        texts = [
            {"pos": "good", "neg": "bad"}[label] + " one" * (i % 3)
            for i, label in enumerate(labels)
        ]
        lines = types.SimpleNamespace(source=None)
        split = types.SimpleNamespace(texts=texts, labels=labels, lines=lines)
        return type("Data", (), {**vars(split), "__len__": lambda self: len(texts)})()

    model = types.SimpleNamespace(
        latent_shape=(1, 3), post=types.SimpleNamespace(sampler=sampler or None)
    )
    splits = dict(train=data(size, 0), valid=data(60, 1), test=data(80, 2))
    config = types.SimpleNamespace(name="run")
    run = types.SimpleNamespace(
        config=config, model=model, data=splits, workdir=Path(tmp_path), exact={}
    )
    monkeypatch.setattr(sri_probe, "card_of", lambda *_: Card())
    monkeypatch.setattr(evaluation, "settings", lambda _: EvalConfig(sentences=70))
    monkeypatch.setattr(evaluation, "untrained", lambda *_: 0.0)
    monkeypatch.setattr(evaluation, "text_vae_of", lambda _, params, seed: Vae(params, sampler))
    return run


@pytest.mark.parametrize("sampler", [True, False])
def test_the_first_lines_are_the_labelled_ones(tmp_path, monkeypatch, sampler):
    run = opened(tmp_path, monkeypatch, sampler)
    report = sri_probe.probe(run, None, 1.0, 3)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["sri_label_100", "sri_label_100_logistic"]
    assert rows["sri_label_100"].value > 85 > 70 > rows["sri_label_100"].baseline
    assert rows["sri_label_100"].note == "SGD, sd of 20 runs"
    assert (
        report.notes[0] == "sri_label_500 is left out: 500 sentences are needed, training has 150."
    )
    assert report.card.sentences == 70
    assert ("200 chains" in report.notes[-1]) == sampler
    stored = json.loads((tmp_path / "eval/probe.sri.json").read_text())
    assert set(stored["metrics"]) == set(rows) and all(map(define, rows))


def test_labels_that_training_lacks(tmp_path, monkeypatch):
    run = opened(tmp_path, monkeypatch)
    run.data["test"].labels[0] = "new"
    monkeypatch.setattr(evaluation, "settings", lambda _: EvalConfig())
    with pytest.raises(DataError, match="labels new are not among the training sentences"):
        sri_probe.probe(run, None, 1.0, 3)
    run.model.latent_shape = (0, 0)
    with pytest.raises(ConfigError, match="has no latent"):
        sri_probe.probe(run, None, 1.0, 3)
