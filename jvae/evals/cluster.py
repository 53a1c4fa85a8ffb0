"""Do clusters of posterior means match the labels? Gaussian mixtures, matched to the labels.

Source: Pang et al. 2021, the released clustering: PCA to four dimensions, then a mixture with full
covariances. Deviation: the most likely of several restarts instead of a single seed, because single
seeds give solutions whose accuracies differ by 15 points.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError

PCA = 4
RESTARTS = 5


class Clustering(NamedTuple):
    """Agreement with the labels: accuracy in %, normalised mutual information from 0 to 1."""

    accuracy: float
    nmi: float
    log_likelihood: float  # selected restart, nats per sentence of the fitted set
    restarts: list[float]  # accuracy of each restart, to show the effect of the seed


def matched_accuracy(cluster_e: Int[np.ndarray, "e"], label_e: Int[np.ndarray, "e"]) -> float:
    """Accuracy in % under the best one-to-one matching of clusters to labels (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    _, cluster_e = np.unique(cluster_e, return_inverse=True)
    _, label_e = np.unique(label_e, return_inverse=True)
    together = np.zeros((cluster_e.max() + 1, label_e.max() + 1), np.int64)
    np.add.at(together, (cluster_e, label_e), 1)
    row, column = linear_sum_assignment(together, maximize=True)
    return 100.0 * float(together[row, column].sum() / len(label_e))


def clustering(
    feature_ed: Float[np.ndarray, "e d"],
    test_ed: Float[np.ndarray, "n d"],
    test_label_e: Int[np.ndarray, "n"],
    *,
    pca: int = PCA,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> Clustering:
    """Fits a mixture with one component per label, without using labels; scores the test set.

    Args:
      feature_ed: data to fit the mixture to, such as the training split's posterior means.
      pca: dimensions to keep; 0 keeps all.
    Raises: DataError if the labels do not match the features or are all the same.
    """
    from sklearn.decomposition import PCA as Pca
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.mixture import GaussianMixture

    test_label_e = np.asarray(test_label_e)
    kinds = len(np.unique(test_label_e))
    if len(test_ed) != len(test_label_e) or kinds < 2:
        raise DataError(
            f"clustering: {len(test_ed)} sentences, {len(test_label_e)} labels of {kinds} kinds; "
            "expected a label for each, of at least two kinds"
        )
    if 0 < pca < feature_ed.shape[1]:
        axes = Pca(pca, svd_solver="full").fit(feature_ed)
        feature_ed, test_ed = axes.transform(feature_ed), axes.transform(test_ed)
    tries = []
    for i in range(restarts):
        mixture = GaussianMixture(kinds, tol=1e-3, max_iter=200, random_state=seed + i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unconverged restart may lose, no more
            mixture.fit(feature_ed)
        cluster_e = mixture.predict(test_ed)
        score = float(mixture.score(feature_ed))
        tries.append((score, matched_accuracy(cluster_e, test_label_e), cluster_e))
    best = max(tries, key=lambda trial: trial[0])
    return Clustering(
        accuracy=best[1],
        nmi=float(normalized_mutual_info_score(test_label_e, best[2])),
        log_likelihood=best[0],
        restarts=[trial[1] for trial in tries],
    )
