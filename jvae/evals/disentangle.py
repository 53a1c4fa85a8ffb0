"""Does one latent dimension follow one factor of variation? z-diff, z-min-var, MIG and DCI.

All metrics use sentences as sampled from the corpus, with known factors. The factors of the
embedded corpus depend on each other, so even a perfect code does not score 1; compare with the
baseline, the score of an uninformative code.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError

BINS = 20
GROUP = 32  # sentences per group that share a factor value, for z-diff and z-min-var
POINTS = 1_000  # such groups, half to fit and half to score
TREES = 20
# Sentences for the forests, half to fit and half to score. With the 40,000 that the probes of the
# embedded corpus encode, the forests would take most of the time of all probes.
FOREST = 10_000


class Disentanglement(NamedTuple):
    """All from 0 to 1, higher is better; accuracies of predicting which factor was held fixed."""

    z_diff: float
    z_min_var: float
    mig: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float


def _entropy(count: Float[np.ndarray, "..."]) -> float:
    p = count[count > 0] / count.sum()
    return float(-np.sum(p * np.log(p)))


def information(
    feature_ed: Float[np.ndarray, "e d"], factor_ef: Int[np.ndarray, "e f"], bins: int = BINS
) -> tuple[Float[np.ndarray, "d f"], Float[np.ndarray, "f"]]:
    """Mutual information of binned dimensions with factors, and entropy of the factors, in nats.

    Bins have equal width between the smallest and the largest value.
    """
    dims, factors = feature_ed.shape[1], factor_ef.shape[1]
    mi_df, entropy_f = np.zeros((dims, factors)), np.zeros(factors)
    for f in range(factors):
        _, label_e = np.unique(factor_ef[:, f], return_inverse=True)
        entropy_f[f] = _entropy(np.bincount(label_e))
        for d in range(dims):
            x_e = feature_ed[:, d]
            edges = np.linspace(x_e.min(), x_e.max(), bins + 1)[1:-1]
            joint = np.zeros((bins, label_e.max() + 1))
            np.add.at(joint, (np.digitize(x_e, edges), label_e), 1)
            parts = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
            mi_df[d, f] = parts - _entropy(joint.ravel())
    return mi_df, entropy_f


def mig(mi_df: Float[np.ndarray, "d f"], entropy_f: Float[np.ndarray, "f"]) -> float:
    """Mean gap between the two most informative dimensions of a factor, over its entropy.

    Source: Chen et al. 2018, eq. 6.
    """
    top_df = np.sort(mi_df, axis=0)[::-1]
    return float(np.mean((top_df[0] - top_df[1]) / entropy_f))


def _groups(factor_ef: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of sentences that share the value of a random factor, and which factor it was."""
    place, factors = [], []
    for _ in range(POINTS):
        f = int(rng.integers(factor_ef.shape[1]))
        value = factor_ef[rng.integers(len(factor_ef)), f]
        same = np.flatnonzero(factor_ef[:, f] == value)
        place.append(rng.choice(same, GROUP))
        factors.append(f)
    return np.array(place), np.array(factors)


def _halves(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    half = len(x) // 2
    return x[:half], y[:half], x[half:], y[half:]


def z_diff(feature_ed: Float[np.ndarray, "e d"], place_pg: np.ndarray, held_p: np.ndarray) -> float:
    """Accuracy of a linear classifier on mean differences within pairs of similar sentences.

    Source: Higgins et al. 2017, section 3.
    """
    from sklearn.linear_model import LogisticRegression

    first, second = np.split(feature_ed[place_pg], 2, axis=1)
    x, y, test_x, test_y = _halves(np.abs(first - second).mean(axis=1), held_p)
    return float(LogisticRegression(max_iter=500, tol=1e-3).fit(x, y).score(test_x, test_y))


def z_min_var(
    feature_ed: Float[np.ndarray, "e d"], place_pg: np.ndarray, held_p: np.ndarray
) -> float:
    """Accuracy of the majority vote on the dimension that varies least within a group.

    Source: Kim & Mnih 2018, section 4.
    """
    least_p = np.argmin(feature_ed[place_pg].var(axis=1, ddof=1), axis=1)
    x, y, test_x, test_y = _halves(least_p, held_p)
    votes = np.zeros((feature_ed.shape[1], held_p.max() + 1), np.int64)
    np.add.at(votes, (x, y), 1)
    return float(np.mean(votes.argmax(axis=1)[test_x] == test_y))


def dci(
    feature_ed: Float[np.ndarray, "e d"], factor_ef: Int[np.ndarray, "e f"], seed: int = 0
) -> tuple[float, float, float]:
    """Disentanglement, completeness and informativeness by the importances of random forests.

    Source: Eastwood & Williams 2018, section 2; informativeness is the accuracy on the other half.
    Of more than FOREST sentences the first ones are used.
    """
    from sklearn.ensemble import RandomForestClassifier

    importance_df, accuracy = [], []
    for f in range(factor_ef.shape[1]):
        x, y, test_x, test_y = _halves(feature_ed[:FOREST], factor_ef[:FOREST, f])
        forest = RandomForestClassifier(
            # Every split considers every dimension. Otherwise uninformative dimensions gain
            # importance where the informative one was not drawn, and no latent could score 1.
            TREES,
            min_samples_leaf=5,
            max_features=None,
            n_jobs=-1,
            random_state=seed,
        ).fit(x, y)
        forest.n_jobs = 1  # threads would sum the votes in a nondeterministic order
        importance_df.append(forest.feature_importances_)
        accuracy.append(forest.score(test_x, test_y))
    share_df = np.array(importance_df).T + 1e-12
    dims, factors = share_df.shape
    by_d = np.array([1 - _entropy(row) / math.log(factors) for row in share_df])
    by_f = np.array([1 - _entropy(row) / math.log(dims) for row in share_df.T])
    weight_d = share_df.sum(axis=1) / share_df.sum()
    return float(np.sum(weight_d * by_d)), float(by_f.mean()), float(np.mean(accuracy))


def disentanglement(
    feature_ed: Float[np.ndarray, "e d"], factor_ef: Int[np.ndarray, "e f"], seed: int = 0
) -> Disentanglement:
    """All metrics for posterior means and the factors of their sentences.

    Dimensions are first scaled to unit variance; constant ones are left out.

    Raises: DataError if fewer than two dimensions or two factors vary.
    """
    feature_ed = np.asarray(feature_ed, np.float64)
    sd_d = feature_ed.std(axis=0)
    feature_ed = feature_ed[:, sd_d > 0] / sd_d[sd_d > 0]
    factor_ef = np.asarray(factor_ef)
    factor_ef = factor_ef[:, [len(np.unique(column)) > 1 for column in factor_ef.T]]
    if feature_ed.shape[1] < 2 or factor_ef.shape[1] < 2:
        raise DataError(
            f"disentanglement: {feature_ed.shape[1]} dimensions and {factor_ef.shape[1]} factors "
            "vary; expected at least two of each"
        )
    groups = _groups(factor_ef, np.random.default_rng(seed))
    return Disentanglement(
        z_diff(feature_ed, *groups),
        z_min_var(feature_ed, *groups),
        mig(*information(feature_ed, factor_ef)),
        *dci(feature_ed, factor_ef, seed),
    )
