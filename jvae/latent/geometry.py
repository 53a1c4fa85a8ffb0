"""Latent-space geometry: interpolation, traversal of dimensions, attribute vectors. NumPy only."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jvae.errors import InputError, whole

HOW = ("linear", "slerp")
OFFSETS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def between(
    a_egz: Float[np.ndarray, "e g z"],
    b_egz: Float[np.ndarray, "e g z"],
    steps: int,
    how: str = "linear",
) -> Float[np.ndarray, "e t g z"]:
    """`steps` points from a to b, both ends included, for every pair.

    Args:
      how: "linear", or "slerp" for spherical interpolation over all groups jointly.
    Raises: InputError for fewer than two steps or an unknown `how`.
    """
    if how not in HOW:
        raise InputError(f"how is {how!r}; expected one of {', '.join(HOW)}")
    return (line if how == "linear" else arc)(a_egz, b_egz, steps)


def line(
    a_egz: Float[np.ndarray, "e g z"], b_egz: Float[np.ndarray, "e g z"], steps: int
) -> Float[np.ndarray, "e t g z"]:
    """`steps` evenly spaced points from a to b, both ends included, for every pair."""
    t = _shares(steps)[None, :, None, None]
    return (1 - t) * a_egz[:, None] + t * b_egz[:, None]


def arc(
    a_egz: Float[np.ndarray, "e g z"], b_egz: Float[np.ndarray, "e g z"], steps: int
) -> Float[np.ndarray, "e t g z"]:
    """Spherical interpolation with evenly spaced angles; keeps the length if both ends share it.

    Pairs that are collinear with the origin, or include it, are interpolated linearly. Source:
    Shoemake 1985.
    """
    t = _shares(steps).astype(np.float64)[None, :, None]
    a, b = (x.reshape(len(x), 1, -1).astype(np.float64) for x in (a_egz, b_egz))
    lengths = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    cosine = np.sum(a * b, axis=2) / np.maximum(lengths, 1e-12)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))[..., None]
    straight = (np.sin(angle) < 1e-6) | (lengths[..., None] == 0)
    sine = np.where(straight, 1.0, np.sin(angle))
    curved = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / sine
    z = np.where(straight, (1 - t) * a + t * b, curved)
    return z.reshape(len(a), steps, *a_egz.shape[1:]).astype(np.float32)


def _shares(steps: int) -> Float[np.ndarray, "t"]:
    whole("steps", steps, 2)
    return np.linspace(0.0, 1.0, steps, dtype=np.float32)


def axes(
    z_gz: Float[np.ndarray, "g z"], dims: Sequence[int], offsets: Sequence[float] = OFFSETS
) -> Float[np.ndarray, "d t g z"]:
    """Moves one latent along each of the given dimensions and keeps all others fixed.

    Args:
      dims: indices into the flattened latent; dimension i of group g is g * width + i.
      offsets: added to the latent's own value.
    Raises: InputError for an out-of-range dimension.
    """
    for dim in dims:
        whole("dimension", dim, 0)
        if dim >= z_gz.size:
            raise InputError(f"dimension {dim}: the latent has dimensions 0 to {z_gz.size - 1}")
    out = np.tile(z_gz.reshape(-1), (len(dims), len(offsets), 1)).astype(np.float32)
    for place, dim in enumerate(dims):
        out[place, :, dim] += np.asarray(offsets, np.float32)
    return out.reshape(len(dims), len(offsets), *z_gz.shape)


def most_active(z_egz: Float[np.ndarray, "e g z"]) -> list[int]:
    """The dimensions of the flattened latent by their variance over sentences, largest first.

    Args:
      z_egz: posterior means of sentences.
    """
    variance_d = z_egz.reshape(len(z_egz), -1).var(axis=0, dtype=np.float64)
    return np.argsort(-variance_d, kind="stable").tolist()


def on_sphere(z_egz: Float[np.ndarray, "e g z"]) -> Float[np.ndarray, "e g z"]:
    """Normalises every vector to length 1."""
    length_eg1 = np.linalg.norm(z_egz, axis=-1, keepdims=True)
    return (z_egz / np.maximum(length_eg1, 1e-12)).astype(np.float32)


def direction(
    from_egz: Float[np.ndarray, "e g z"], to_egz: Float[np.ndarray, "n g z"]
) -> Float[np.ndarray, "g z"]:
    """The attribute vector: the mean of `to_egz` minus the mean of `from_egz`.

    Adding it to a latent moves that latent from the first set towards the second.

    Raises: InputError if either set is empty.
    """
    if len(from_egz) == 0 or len(to_egz) == 0:
        raise InputError(
            f"direction: {len(from_egz)} and {len(to_egz)} latents; expected some of each"
        )
    with_gz, without_gz = (np.asarray(x, np.float64).mean(axis=0) for x in (to_egz, from_egz))
    return (with_gz - without_gz).astype(np.float32)


def agreement(
    vector_gz: Float[np.ndarray, "g z"],
    from_egz: Float[np.ndarray, "e g z"],
    to_egz: Float[np.ndarray, "n g z"],
) -> float:
    """Fraction of pairs, one latent from each set, that `direction` orders correctly (AUC).

    It is 1/2 for a vector unrelated to the attribute. Use held-out sentences, not those that the
    vector was computed from.
    """
    low_e, high_n = (np.tensordot(latents, vector_gz, axes=2) for latents in (from_egz, to_egz))
    order = np.concatenate([low_e, high_n])
    rank = np.searchsorted(np.sort(order), order) + np.searchsorted(np.sort(order), order, "right")
    wins = (rank[len(low_e) :].sum() + len(high_n)) / 2 - len(high_n) * (len(high_n) + 1) / 2
    return float(wins / (len(low_e) * len(high_n)))
