"""What posterior means say of a sentence: linear probes, with few labels and with all.

Features are posterior means, flattened over latent groups and scaled to unit variance; the probe is
an L2 logistic regression (C = 1). An accuracy means something beside two others only: the share of
the most frequent label, and the same probe on permuted labels or on an untrained encoder.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError

FOLDS = 5
SEEDS = 5  # draws of the labelled few


class Accuracy(NamedTuple):
    """Shares in %, over folds or seeds."""

    mean: float
    sd: float | None  # None of a single one
    majority: float  # of always saying the most frequent label
    runs: int


def flat(mean_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e d"]:
    """Features of posterior means."""
    return np.asarray(mean_egz, np.float64).reshape(len(mean_egz), -1)


def _fit(feature_ed: np.ndarray, label_e: np.ndarray):
    from sklearn.linear_model import LogisticRegression  # slow to import, and for probes alone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is still a fit
        return probe.fit(feature_ed, label_e)


def _accuracy(probe, feature_ed: np.ndarray, label_e: np.ndarray) -> float:
    return 100.0 * float(np.mean(probe.predict(feature_ed) == label_e))


def _summary(values: Sequence[float], label_e: np.ndarray) -> Accuracy:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    _, count = np.unique(label_e, return_counts=True)
    return Accuracy(
        float(np.mean(values)), sd, 100.0 * float(count.max() / count.sum()), len(values)
    )


def _check(feature_ed: np.ndarray, label_e: np.ndarray) -> None:
    if len(feature_ed) != len(label_e):
        raise DataError(f"probe: {len(feature_ed)} sentences but {len(label_e)} labels")
    if len(np.unique(label_e)) < 2:
        raise DataError("probe: all labels are one; a probe needs at least two kinds")


def linear_probe(
    feature_ed: Float[np.ndarray, "e d"],
    label_e: Int[np.ndarray, "e"],
    folds: int = FOLDS,
    seed: int = 0,
) -> Accuracy:
    """Cross-validated accuracy; folds are random parts of equal size.

    Raises: DataError if the labels do not fit, are all one, or are fewer than the folds.
    """
    label_e = np.asarray(label_e)
    _check(feature_ed, label_e)
    if len(label_e) < folds:
        raise DataError(f"probe: {len(label_e)} labels are too few for {folds} folds")
    order = np.random.default_rng(seed).permutation(len(label_e))
    values = []
    for part in np.array_split(order, folds):
        rest = np.setdiff1d(order, part)
        if len(np.unique(label_e[rest])) < 2:
            continue  # nothing to learn from
        values.append(
            _accuracy(_fit(feature_ed[rest], label_e[rest]), feature_ed[part], label_e[part])
        )
    return _summary(values, label_e)


def low_resource(
    feature_ed: Float[np.ndarray, "e d"],
    label_e: Int[np.ndarray, "e"],
    test_ed: Float[np.ndarray, "n d"],
    test_label_e: Int[np.ndarray, "n"],
    sizes: Sequence[int],
    seeds: int = SEEDS,
    seed: int = 0,
) -> dict[int, Accuracy]:
    """Test accuracy of probes that saw so many training labels, over draws of them.

    Sizes above the number of labels are left out; all of them are drawn once. A draw takes labels
    as they come, not the same number of each.

    Raises: DataError if the labels do not fit or are all one.
    """
    label_e, test_label_e = np.asarray(label_e), np.asarray(test_label_e)
    _check(feature_ed, label_e)
    _check(test_ed, test_label_e)
    found = {}
    for size in sizes:
        if size > len(label_e):
            continue
        values = []
        for i in range(seeds if size < len(label_e) else 1):
            order = np.random.default_rng([seed, size, i]).permutation(len(label_e))[:size]
            if len(np.unique(label_e[order])) < 2:
                continue
            probe = _fit(feature_ed[order], label_e[order])
            values.append(_accuracy(probe, test_ed, test_label_e))
        if values:
            found[size] = _summary(values, test_label_e)
    return found


def permuted(label_e: Int[np.ndarray, "e"], seed: int = 0) -> Int[np.ndarray, "e"]:
    """The control: the same labels, on other sentences."""
    return np.random.default_rng(seed).permutation(np.asarray(label_e))
