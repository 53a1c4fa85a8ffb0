"""Finds the sentences of a corpus that are nearest to a latent."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvae.errors import InputError

METRICS = ("cosine", "euclidean")
BLOCK = 1_024  # queries compared at once


class Neighbor(NamedTuple):
    """A sentence of a corpus and its distance; cosine distance is 1 - cosine."""

    text: str
    place: int  # index in the corpus, from 0
    distance: float


def nearest(
    query_egz: Float[np.ndarray, "e g z"],
    corpus_ngz: Float[np.ndarray, "n g z"],
    count: int,
    metric: str = "cosine",
) -> tuple[Int[np.ndarray, "e k"], Float[np.ndarray, "e k"]]:
    """Indices and distances of the `count` nearest latents of each query, nearest first.

    Ties keep the order of the corpus. A corpus with fewer latents returns all of them.

    Raises: InputError for an unknown metric or a count below 1.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    if count < 1:
        raise InputError(f"{count} neighbors; expected at least 1")
    corpus_nd = _flat(corpus_ngz, metric)
    square_n = np.sum(corpus_nd**2, axis=1)
    count = min(count, len(corpus_nd))
    places, distances = [np.zeros((0, count), np.int64)], [np.zeros((0, count))]
    for first in range(0, len(query_egz), BLOCK):
        query_ed = _flat(query_egz[first : first + BLOCK], metric)
        product_en = query_ed @ corpus_nd.T
        if metric == "cosine":
            distance_en = 1.0 - product_en
        else:
            square_e = np.sum(query_ed**2, axis=1)
            distance_en = np.sqrt(np.maximum(square_e[:, None] + square_n - 2 * product_en, 0.0))
        place_ek = np.argsort(distance_en, axis=1, kind="stable")[:, :count]
        places.append(place_ek)
        distances.append(np.take_along_axis(distance_en, place_ek, axis=1))
    return np.concatenate(places), np.concatenate(distances)


def _flat(z_egz: np.ndarray, metric: str) -> np.ndarray:
    z_ed = np.asarray(z_egz, np.float64).reshape(len(z_egz), math.prod(z_egz.shape[1:]))
    if metric == "cosine":
        return z_ed / np.maximum(np.linalg.norm(z_ed, axis=1, keepdims=True), 1e-12)
    return z_ed
