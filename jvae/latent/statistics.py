"""Moments of a set of latents. NumPy only."""

import numpy as np
from jaxtyping import Float


def statistics(z_ngz: Float[np.ndarray, "n g z"]) -> dict[str, np.ndarray]:
    """Mean, standard deviation, covariance and explained variance of a set of latents, in float32.

    Mean and scale (standard deviation) are per dimension. The covariance is over all dimensions;
    dimension i of group g is row g * Z + i. The last entry is the share of variance of each
    principal component, largest first.
    """
    flat_nd = np.asarray(z_ngz, np.float64).reshape(len(z_ngz), -1)
    mean_d = flat_nd.mean(axis=0)
    left_nd = flat_nd - mean_d[None]
    covariance_dd = left_nd.T @ left_nd / max(len(flat_nd), 1)
    variance_d = np.maximum(np.linalg.eigvalsh(covariance_dd)[::-1], 0.0)
    values = {
        "mean": mean_d.reshape(z_ngz.shape[1:]),
        "scale": np.sqrt(np.diagonal(covariance_dd)).reshape(z_ngz.shape[1:]),
        "covariance": covariance_dd,
        "pca_share": variance_d / max(float(variance_d.sum()), 1e-30),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}
