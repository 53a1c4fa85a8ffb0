"""Does one latent dimension stand for one factor? MIG and DCI against known factors.

Both are 1 where each factor is told by one dimension of its own, and about 0 where every dimension
says as much of every factor. Factors that depend on each other, as those of the embedded corpus do,
cannot reach 1: compare with `ceiling`, the value of the factors taken as the latent.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import DataError

BINS = 20  # of each latent dimension, of equal width
TREES = 20
HELD_OUT = 0.25  # share of the sentences that informativeness is measured on


class Mig(NamedTuple):
    """Mutual information gaps, as shares of each factor's entropy."""

    mean: float
    gap_f: Float[np.ndarray, "f"]
    information_df: Float[np.ndarray, "d f"]  # of each dimension on each factor, nats


class Dci(NamedTuple):
    """Disentanglement, completeness and informativeness, each 0 to 1."""

    disentanglement: float
    completeness: float
    informativeness: float  # accuracy on held-out sentences, mean over factors
    majority: float  # the same of always saying the most frequent value
    importance_df: Float[np.ndarray, "d f"]


def flat(z_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e d"]:
    """Latents with all groups side by side."""
    return np.asarray(z_egz, np.float64).reshape(len(z_egz), -1)


def mig(z_ed: Float[np.ndarray, "e d"], factor_ef: Int[np.ndarray, "e f"], bins: int = BINS) -> Mig:
    """Gap between the two dimensions that tell most of a factor, over its entropy; mean of all.

    Source: Chen et al. 2018, eq. 6, on posterior means in bins (Locatello et al. 2019).

    Raises: DataError if the factors do not fit, or one has one value only.
    """
    factor_ef = _check(z_ed, factor_ef)
    code_ed = np.stack([_binned(column, bins) for column in z_ed.T], axis=1)
    information_df = np.array(
        [[mutual_information(code, f) for f in factor_ef.T] for code in code_ed.T]
    )
    top_df = np.sort(information_df, axis=0)[::-1]
    second_f = top_df[1] if len(top_df) > 1 else np.zeros(factor_ef.shape[1])
    entropy_f = np.array([mutual_information(f, f) for f in factor_ef.T])
    gap_f = (top_df[0] - second_f) / entropy_f
    return Mig(float(gap_f.mean()), gap_f, information_df)


def mutual_information(a_e: Int[np.ndarray, "e"], b_e: Int[np.ndarray, "e"]) -> float:
    """Of two labels of the same sentences, from their counts, in nats."""
    _, a_e = np.unique(a_e, return_inverse=True)
    _, b_e = np.unique(b_e, return_inverse=True)
    count_ab = np.bincount(a_e * (b_e.max() + 1) + b_e, minlength=(a_e.max() + 1) * (b_e.max() + 1))
    p_ab = count_ab.reshape(a_e.max() + 1, b_e.max() + 1) / len(a_e)
    apart_ab = p_ab.sum(axis=1, keepdims=True) * p_ab.sum(axis=0, keepdims=True)
    some = p_ab > 0
    return float(np.sum(p_ab[some] * np.log(p_ab[some] / apart_ab[some])))


def dci(
    z_ed: Float[np.ndarray, "e d"],
    factor_ef: Int[np.ndarray, "e f"],
    *,
    trees: int = TREES,
    seed: int = 0,
) -> Dci:
    """Importances of the dimensions for a random forest of each factor, and its accuracy.

    Every split may read every dimension, so a dimension that tells nothing gets next to nothing.
    Source: Eastwood & Williams 2018, sec. 2; their weights are importances over factors and
    dimensions.

    Raises: DataError if the factors do not fit, or one has one value only.
    """
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    factor_ef = _check(z_ed, factor_ef)
    order = np.random.default_rng(seed).permutation(len(z_ed))
    cut = max(int(HELD_OUT * len(order)), 1)
    test, train = order[:cut], order[cut:]
    columns, correct, majority = [], [], []
    for factor_e in factor_ef.T:
        forest = RandomForestClassifier(trees, max_features=None, random_state=seed)
        forest.fit(z_ed[train], factor_e[train])
        columns.append(forest.feature_importances_)
        correct.append(np.mean(forest.predict(z_ed[test]) == factor_e[test]))
        majority.append(np.mean(np.bincount(factor_e[train]).argmax() == factor_e[test]))
    importance_df = np.stack(columns, axis=1)
    return Dci(
        disentanglement(importance_df),
        disentanglement(importance_df.T),
        float(np.mean(correct)),
        float(np.mean(majority)),
        importance_df,
    )


def disentanglement(importance_df: Float[np.ndarray, "d f"]) -> float:
    """1 less the entropy of each row as a distribution, in units of its maximum, rows weighed by
    their sums. Of the transposed matrix it is completeness.
    """
    row_d = importance_df.sum(axis=1)
    if row_d.sum() == 0 or importance_df.shape[1] < 2:
        return 0.0
    p_df = importance_df / np.maximum(row_d, 1e-300)[:, None]
    entropy_d = -np.sum(p_df * np.log(np.where(p_df > 0, p_df, 1.0)), axis=1)
    return float(np.sum(row_d * (1 - entropy_d / np.log(importance_df.shape[1]))) / row_d.sum())


def ceiling(factor_ef: Int[np.ndarray, "e f"]) -> Mig:
    """MIG of the factors themselves: what their dependence leaves to be reached."""
    factor_ef = np.asarray(factor_ef)
    return mig(factor_ef.astype(np.float64), factor_ef, int(factor_ef.max()) + 1)


def _binned(column_e: np.ndarray, bins: int) -> Int[np.ndarray, "e"]:
    low, high = column_e.min(), column_e.max()
    if high == low:
        return np.zeros(len(column_e), np.int64)
    share_e = (column_e - low) / (high - low)
    return np.minimum((share_e * bins).astype(np.int64), bins - 1)


def _check(z_ed: np.ndarray, factor_ef: np.ndarray) -> Int[np.ndarray, "e f"]:
    factor_ef = np.asarray(factor_ef)
    if factor_ef.ndim != 2 or len(factor_ef) != len(z_ed) or np.ndim(z_ed) != 2:
        raise DataError(
            f"latents {np.shape(z_ed)} and factors {factor_ef.shape} do not fit; expected a row "
            "of each per sentence"
        )
    for i, column in enumerate(factor_ef.T):
        if len(np.unique(column)) < 2:
            raise DataError(f"factor {i} has one value in all sentences; leave it out")
    return np.stack([np.unique(column, return_inverse=True)[1] for column in factor_ef.T], axis=1)
