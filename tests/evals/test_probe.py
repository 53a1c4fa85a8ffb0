import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals import cluster, probe


def blobs(count, seed=0, apart=3.0, kinds=3, width=6):
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(9).normal(size=(kinds, width)) * apart
    label = rng.integers(0, kinds, count)
    return centre[label] + rng.normal(size=(count, width)), label


def test_a_probe_finds_what_is_there_and_nothing_else():
    feature, label = blobs(200)
    actual = probe.linear_probe(feature, label)
    assert actual.mean > 95 and actual.runs == 5 and actual.sd is not None
    chance = probe.linear_probe(feature, probe.permuted(label))
    assert chance.mean < 50 < actual.mean
    assert actual.majority == 100 * np.bincount(label).max() / 200
    # Scale does not matter: features are standardised on the fitted part.
    scaled = probe.linear_probe(feature * 10.0 ** np.arange(6) + 5, label)
    assert scaled.mean == pytest.approx(actual.mean, abs=1e-6)


def test_folds_are_disjoint_and_cover_all(monkeypatch):
    feature, label = blobs(53)
    tested, fitted = [], []

    class Probe:
        def predict(self, feature_ed):
            tested.append(feature_ed)
            return np.zeros(len(feature_ed))

    monkeypatch.setattr(probe, "_fit", lambda x, y: fitted.append(x) or Probe())
    probe.linear_probe(feature, label)
    rows = np.concatenate(tested)
    assert sorted(rows[:, 0]) == sorted(feature[:, 0])
    for a, b in zip(fitted, tested, strict=True):
        assert not set(a[:, 0]) & set(b[:, 0]) and len(a) + len(b) == 53


def test_folds_hold_their_share_of_every_label():
    label = np.repeat([0, 1, 2, 3], [40, 11, 3, 1])
    fold = probe.stratified_folds(label, 5)
    for part in (fold, *(fold[label == kind] for kind in range(4))):
        sizes = np.bincount(part, minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert np.any(fold != probe.stratified_folds(label, 5, seed=1))
    assert probe.rare(label) == {2: 3, 3: 1}


@pytest.mark.parametrize("counts", [(39, 1), (39, 4), (21, 20), (6, 6), (17, 16, 9), (5, 1, 1, 1)])
def test_features_that_say_nothing_never_beat_the_most_frequent_label(counts):
    label = np.repeat(np.arange(len(counts)), counts)
    for seed in range(3):
        scores = probe.linear_probe(np.zeros((len(label), 2)), label, seed=seed)
        assert scores.runs == 5 and scores.mean <= scores.majority
        assert scores.balanced <= 100 / len(counts) + 10
    # A fold without anything to learn was dropped: 100 % where the most frequent label has 97.5.
    if counts == (39, 1):
        assert scores.mean == scores.majority == 97.5 and scores.balanced == 50


def test_scores_are_those_of_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    label = rng.choice(4, 200, p=[0.7, 0.2, 0.07, 0.03])
    predicted = np.where(rng.random(200) < 0.6, label, rng.choice(4, 200))
    expected = (
        metrics.accuracy_score(label, predicted),
        metrics.balanced_accuracy_score(label, predicted),
        metrics.f1_score(label, predicted, average="macro"),
    )
    assert probe.scores(predicted, label) == pytest.approx([100 * x for x in expected])
    # Always the frequent label: a high accuracy, and nothing else.
    accuracy, balanced, f1 = probe.scores(np.zeros(200), label)
    assert accuracy > 60 and balanced == 25 and f1 < 25


def test_more_labels_help():
    train, label = blobs(400, apart=0.8)
    test, test_label = blobs(200, seed=1, apart=0.8)
    most = int(np.bincount(label).max())
    actual = probe.low_resource(train, label, test, test_label, sizes=(3, 30, most, 500), seeds=4)
    assert list(actual) == [3, 30, most]  # there are no 500
    assert actual[3].mean < actual[30].mean
    assert actual[3].runs == 4 and actual[most].runs == 1 and actual[most].sd is None
    again = probe.low_resource(train, label, test, test_label, sizes=(3,), seeds=4)
    assert again[3] == actual[3]


def test_budgets_are_of_each_label(monkeypatch):
    label = np.repeat([0, 1, 2], [90, 8, 2])
    drawn = []

    class Probe:
        def predict(self, feature_ed):
            return np.zeros(len(feature_ed))

    monkeypatch.setattr(probe, "_fit", lambda x, y: drawn.append((x[:, 0], y)) or Probe())
    feature = np.arange(100.0)[:, None]
    actual = probe.low_resource(feature, label, feature, label, sizes=(1, 4, 90, 91), seeds=3)
    # A label with fewer gives all that it has.
    assert list(actual) == [1, 4, 90] and [accuracy.runs for accuracy in actual.values()] == [
        3,
        3,
        1,
    ]
    counts = [np.bincount(y).tolist() for _, y in drawn]
    assert counts == [[1, 1, 1]] * 3 + [[4, 4, 2]] * 3 + [[90, 8, 2]]
    assert len({tuple(x) for x, _ in drawn}) == 7
    assert probe.budget_fault(label, 91) == "the most frequent label, 0, has 90 sentences"
    assert not probe.budget_fault(label, 90)
    assert actual[4].majority == 90 and actual[4].balanced == pytest.approx(100 / 3)


def test_labels_are_checked():
    feature, label = blobs(20)
    with pytest.raises(DataError, match="20 sentences but 19 labels"):
        probe.linear_probe(feature, label[:-1])
    with pytest.raises(DataError, match="all labels are the same"):
        probe.linear_probe(feature, np.zeros(20))
    with pytest.raises(DataError, match="3 labels are too few for 5 folds"):
        probe.linear_probe(feature[:3], np.array([0, 1, 0]))
    with pytest.raises(DataError, match="at least two kinds"):
        cluster.clustering(feature, feature, np.zeros(20))
    assert probe.flat(np.zeros((4, 2, 3))).shape == (4, 6)


def test_matching_ignores_the_names_of_clusters():
    label = np.array([0, 0, 1, 1, 2, 2, 2])
    assert cluster.matched_accuracy(np.array([7, 7, 3, 3, 5, 5, 5]), label) == 100
    # Two clusters on one label: only one of them counts.
    assert cluster.matched_accuracy(np.array([0, 1, 2, 2, 3, 3, 3]), label) == pytest.approx(
        600 / 7
    )
    # Greedy matching would take (0, 0) with 3 and end at 3; the best is 2 + 2.
    joint = np.array([[3, 2], [2, 0]])
    pairs = [(a, b) for a in (0, 1) for b in (0, 1) for _ in range(joint[a, b])]
    a, b = np.array(pairs).T
    assert cluster.matched_accuracy(a, b) == pytest.approx(400 / 7)


def test_clusters_are_the_likeliest_of_the_restarts():
    train, _ = blobs(300, apart=4.0)
    test, label = blobs(100, seed=1, apart=4.0)
    actual = cluster.clustering(train, test, label, restarts=4)
    assert actual.accuracy > 95 and actual.nmi > 0.9 and len(actual.restarts) == 4
    assert actual.accuracy in actual.restarts
    chance = cluster.clustering(train, test, probe.permuted(label), restarts=1)
    assert chance.accuracy < 60 and chance.nmi < 0.2
