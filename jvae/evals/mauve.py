"""MAUVE of samples and references, from features of both computed by a large language model.

Source: Pillutla et al. 2021, arXiv 2102.01454: both sets are quantised together; the score is the
area under the divergence curve of the two histograms, from 0 to 1. Values are comparable only for
the same feature model, number of lines and settings.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.errors import DataError

SCALING = 5.0
SEEDS = 5  # seeds of k-means; their spread is the error
EXPLAINED = 0.9  # share of the variance kept by the components that are quantised
POINTS = 25  # points of the curve between its ends


class Mauve(NamedTuple):
    """Mean and standard deviation over k-means seeds, and the histograms' size."""

    value: float
    spread: float
    buckets: int


def curve_area(p: Float[np.ndarray, "k"], q: Float[np.ndarray, "k"]) -> float:
    """Area under the divergence curve of two histograms: 1 if equal, near 0 if disjoint."""
    mixed = np.linspace(1e-6, 1 - 1e-6, POINTS)[:, None]
    r = mixed * p + (1 - mixed) * q
    x = np.exp(-SCALING * np.array([_kl(q, mixture) for mixture in r]))
    y = np.exp(-SCALING * np.array([_kl(p, mixture) for mixture in r]))
    x, y = np.append(x, [0.0, 1.0]), np.append(y, [1.0, 0.0])
    order, turned = np.lexsort((-y, x)), np.lexsort((-x, y))
    areas = np.trapezoid(y[order], x[order]), np.trapezoid(x[turned], y[turned])
    return float(np.mean(areas))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    seen = p > 0  # the mixture also has mass wherever p does
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def mauve(samples_nd: Float[np.ndarray, "n d"], references_md: Float[np.ndarray, "m d"]) -> Mauve:
    """MAUVE of two sets of features; the number of buckets is a tenth of the smaller set.

    Raises: DataError if the sets differ in width or have fewer than 20 lines.
    """
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.decomposition import PCA

    n, m = len(samples_nd), len(references_md)
    if min(n, m) < 20 or samples_nd.shape[1:] != references_md.shape[1:]:
        raise DataError(
            f"features of shapes {samples_nd.shape} and {references_md.shape}; expected the same "
            "width and at least 20 lines each"
        )
    both = np.concatenate([samples_nd, references_md]).astype(np.float64)
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    fitted = PCA(random_state=0).fit(both)
    kept = 1 + int(np.searchsorted(np.cumsum(fitted.explained_variance_ratio_), EXPLAINED))
    reduced = fitted.transform(both)[:, :kept]
    buckets = max(2, min(n, m) // 10)
    values = []
    for seed in range(SEEDS):
        bucket = KMeans(buckets, n_init=1, random_state=seed).fit_predict(reduced)
        p, q = (np.bincount(part, minlength=buckets) for part in (bucket[:n], bucket[n:]))
        values.append(curve_area(p / n, q / m))
    return Mauve(float(np.mean(values)), float(np.std(values, ddof=1)), buckets)


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads `samples` and `references` from an .npz file, one row per line.

    Raises: DataError if the file is missing or lacks these arrays.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["samples"], arrays["references"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: {error}; expected an .npz file with arrays `samples` and `references`, a row "
            "of features for each line"
        ) from None
