"""What posterior means encode about a sentence: linear probes, with few labels and with all.

Features are posterior means, flattened over latent groups and scaled to unit variance; the probe is
an L2-regularised logistic regression (C = 1). Read an accuracy against two baselines: the share of
the most frequent label, and the same probe on permuted labels or on an untrained encoder. If one
label dominates, balanced accuracy and macro F1 show what accuracy hides.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError

FOLDS = 5
SEEDS = 10  # draws of the few labelled sentences


class Accuracy(NamedTuple):
    """Scores in %. Cross-validation scores pool all sentences, each predicted by the fit that did
    not see it; scores over random draws are means.
    """

    mean: float  # accuracy
    sd: float | None  # standard deviation of accuracy over folds or draws; None for one
    majority: float  # accuracy of always predicting the most frequent label
    runs: int  # number of folds or draws
    balanced: float  # mean over labels of the recall
    f1: float  # mean over labels of the harmonic mean of precision and recall


def flat(mean_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e d"]:
    """Flattens posterior means into features."""
    return np.asarray(mean_egz, np.float64).reshape(len(mean_egz), -1)


def predicted(feature_ed: np.ndarray, label_e: np.ndarray, test_ed: np.ndarray) -> np.ndarray:
    """Fits a probe to labels and predicts the labels of other sentences."""
    if len(np.unique(label_e)) < 2:
        return np.full(len(test_ed), label_e[0])
    return _fit(feature_ed, label_e).predict(test_ed)


def _fit(feature_ed: np.ndarray, label_e: np.ndarray):
    from sklearn.linear_model import LogisticRegression  # slow to import; for probes only
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is still usable
        return probe.fit(feature_ed, label_e)


def scores(
    predicted_e: Int[np.ndarray, "e"], label_e: Int[np.ndarray, "e"]
) -> tuple[float, float, float]:
    """Accuracy, balanced accuracy and macro F1 in %, over the labels in `label_e`."""
    right_e = predicted_e == label_e
    labels, count = np.unique(label_e, return_counts=True)
    hits = np.array([np.sum(right_e[label_e == label]) for label in labels])
    said = np.array([np.sum(predicted_e == label) for label in labels])
    return (
        100.0 * float(np.mean(right_e)),
        100.0 * float(np.mean(hits / count)),
        100.0 * float(np.mean(2 * hits / (count + said))),
    )


def majority(label_e: np.ndarray) -> float:
    """Share of the most frequent label in %."""
    _, count = np.unique(label_e, return_counts=True)
    return 100.0 * float(count.max() / count.sum())


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _check(feature_ed: np.ndarray, label_e: np.ndarray) -> None:
    if len(feature_ed) != len(label_e):
        raise DataError(f"probe: {len(feature_ed)} sentences but {len(label_e)} labels")
    if len(np.unique(label_e)) < 2:
        raise DataError("probe: all labels are the same; a probe needs at least two")


def stratified_folds(
    label_e: Int[np.ndarray, "e"], folds: int = FOLDS, seed: int = 0
) -> Int[np.ndarray, "e"]:
    """The fold of each sentence. Fold sizes differ by at most one, in total and for each label."""
    shuffled = np.random.default_rng(seed).permutation(len(label_e))
    by_label = shuffled[np.argsort(label_e[shuffled], kind="stable")]
    fold_e = np.empty(len(label_e), np.int64)
    fold_e[by_label] = np.arange(len(label_e)) % folds
    return fold_e


def rare(label_e: Int[np.ndarray, "e"], folds: int = FOLDS) -> dict[int, int]:
    """Labels that do not occur in every fold, with their numbers of sentences.

    Such labels still count in the scores, which they can only lower; leaving them out would raise
    the scores. A label with a single sentence is never predicted, because no fit sees it.
    """
    labels, counts = np.unique(label_e, return_counts=True)
    return {
        label: count
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
        if count < folds
    }


def linear_probe(
    feature_ed: Float[np.ndarray, "e d"],
    label_e: Int[np.ndarray, "e"],
    folds: int = FOLDS,
    seed: int = 0,
) -> Accuracy:
    """Cross-validated scores, with the labels spread evenly over the folds.

    Every sentence is predicted exactly once, so uninformative features score at most `majority`:
    within a fold, the label that is most frequent outside it is at most as frequent as the label
    that is most frequent overall.

    Raises: DataError if the labels do not match the features, are all the same, or are fewer than
      the folds.
    """
    label_e = np.asarray(label_e)
    _check(feature_ed, label_e)
    if len(label_e) < folds:
        raise DataError(f"probe: {len(label_e)} labels are too few for {folds} folds")
    fold_e = stratified_folds(label_e, folds, seed)
    predicted_e = np.empty_like(label_e)
    for fold in range(folds):
        out_e = fold_e == fold
        predicted_e[out_e] = predicted(feature_ed[~out_e], label_e[~out_e], feature_ed[out_e])
    right_e = predicted_e == label_e
    by_fold = [100.0 * float(np.mean(right_e[fold_e == fold])) for fold in range(folds)]
    accuracy, balanced, f1 = scores(predicted_e, label_e)
    return Accuracy(accuracy, sd(by_fold), majority(label_e), folds, balanced, f1)


def budget_fault(label_e: Int[np.ndarray, "e"], per_label: int) -> str:
    """Why a budget of `per_label` sentences per label cannot be drawn; empty if it can.

    A label with fewer sentences contributes all of them; at least one label must have `per_label`.
    """
    labels, counts = np.unique(label_e, return_counts=True)
    most = int(counts.argmax())
    if per_label <= counts[most]:
        return ""
    return f"the most frequent label, {labels[most]}, has {counts[most]} sentences"


def draws_of(
    label_e: Int[np.ndarray, "e"], per_label: int, count: int, seed: int = 0
) -> list[Int[np.ndarray, "n"]]:
    """Draws of `per_label` sentences per label, or all sentences of a label with fewer; a single
    draw if it includes every sentence.
    """
    labels, counts = np.unique(label_e, return_counts=True)
    draws = []
    for i in range(count if counts.max() > per_label else 1):
        order = np.random.default_rng([seed, per_label, i]).permutation(len(label_e))
        by_label = [order[label_e[order] == label][:per_label] for label in labels]
        draws.append(np.sort(np.concatenate(by_label)))
    return draws


def low_resource(
    feature_ed: Float[np.ndarray, "e d"],
    label_e: Int[np.ndarray, "e"],
    test_ed: Float[np.ndarray, "n d"],
    test_label_e: Int[np.ndarray, "n"],
    sizes: Sequence[int],
    seeds: int = SEEDS,
    seed: int = 0,
) -> dict[int, Accuracy]:
    """Test scores of probes by training sentences per label, over random draws of these sentences;
    see `draws_of`. Sizes with a `budget_fault` are skipped.

    Raises: DataError if the labels do not match the features or are all the same.
    """
    label_e, test_label_e = np.asarray(label_e), np.asarray(test_label_e)
    _check(feature_ed, label_e)
    _check(test_ed, test_label_e)
    by_size = {}
    for size in sizes:
        if budget_fault(label_e, size):
            continue
        by_draw = []
        for drawn in draws_of(label_e, size, seeds, seed):
            predicted_e = predicted(feature_ed[drawn], label_e[drawn], test_ed)
            by_draw.append(scores(predicted_e, test_label_e))
        accuracy, balanced, f1 = (float(x) for x in np.mean(by_draw, axis=0))
        spread = sd([row[0] for row in by_draw])
        by_size[size] = Accuracy(
            accuracy, spread, majority(test_label_e), len(by_draw), balanced, f1
        )
    return by_size


def permuted(label_e: Int[np.ndarray, "e"], seed: int = 0) -> Int[np.ndarray, "e"]:
    """Permutes the labels over the sentences, as a baseline."""
    return np.random.default_rng(seed).permutation(np.asarray(label_e))
