"""Latents in the plane."""

import numpy as np
from jaxtyping import Float


def pca(z_ed: Float[np.ndarray, "e d"]) -> tuple[Float[np.ndarray, "e 2"], float]:
    """Coordinates on the first two principal axes, and their share of the variance."""
    centred_ed = z_ed - z_ed.mean(axis=0)
    u_ed, s_d, _ = np.linalg.svd(centred_ed, full_matrices=False)
    plane_e2 = np.zeros((len(z_ed), 2))
    axes = min(2, len(s_d))
    plane_e2[:, :axes] = u_ed[:, :axes] * s_d[:axes]
    # The sign of an axis is arbitrary; it is fixed so that equal latents give equal maps.
    sign = np.sign(plane_e2[np.abs(plane_e2).argmax(axis=0), np.arange(2)])
    total = float(np.sum(s_d**2))
    return plane_e2 * np.where(sign == 0, 1, sign), float(np.sum(s_d[:2] ** 2)) / max(total, 1e-300)
