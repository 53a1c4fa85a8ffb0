"""Moments of a set of latents. NumPy only."""

import numpy as np
from jaxtyping import Float


def statistics(z_ngz: Float[np.ndarray, "n g z"]) -> dict[str, np.ndarray]:
    """Mean and scale (standard deviation) of each dimension, the covariance over all of them, and
    the share of variance of each principal component, largest first; float32.

    Dimension i of group g is row g * Z + i of the covariance.
    """
    flat_nd = np.asarray(z_ngz, np.float64).reshape(len(z_ngz), -1)
    mean_d = flat_nd.mean(axis=0)
    left_nd = flat_nd - mean_d[None]
    covariance_dd = left_nd.T @ left_nd / max(len(flat_nd), 1)
    variance_d = np.maximum(np.linalg.eigvalsh(covariance_dd)[::-1], 0.0)
    found = {
        "mean": mean_d.reshape(z_ngz.shape[1:]),
        "scale": np.sqrt(np.diagonal(covariance_dd)).reshape(z_ngz.shape[1:]),
        "covariance": covariance_dd,
        "pca_share": variance_d / max(float(variance_d.sum()), 1e-30),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}
