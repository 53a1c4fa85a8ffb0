"""Collects per-batch device results into host arrays over sentences, each sentence exactly once."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int
from numpy.typing import ArrayLike

from jvae.errors import DataError


def to_host(tree: Any) -> Any:
    """Converts a pytree of arrays to global NumPy arrays, the same on every process."""

    def fetch(leaf: ArrayLike) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def collect(parts: Iterable[tuple[Any, Any]]) -> tuple[Int[np.ndarray, "e"], Any]:
    """Joins per-batch results as (ids, tree), ordered by id, with empty slots removed.

    Args:
      parts: (id_e, tree) of each batch; every leaf has leading axis E.
    Raises: DataError if there are no sentences or one occurs twice (the message lists the first).
    """
    id_parts, tree_parts = [], []
    for id_e, tree in parts:
        id_e, tree = to_host((id_e, tree))
        keep = id_e >= 0
        id_parts.append(id_e[keep])
        tree_parts.append(jax.tree.map(lambda leaf, keep=keep: leaf[keep], tree))
    id_e = np.concatenate(id_parts) if id_parts else np.zeros((0,), np.int64)
    if id_e.size == 0:
        raise DataError(
            "evaluation: no sentence in any batch. Expected at least one filled slot; "
            "check that the split is not empty and that its sentences fit the model's context."
        )
    unique, count = np.unique(id_e, return_counts=True)
    if unique.size != id_e.size:
        twice = unique[count > 1]
        raise DataError(
            f"evaluation: {twice.size} sentences occur more than once (ids {twice[:5].tolist()}). "
            "Expected each example of the split once; feed one epoch, without repetition "
            "or overlapping shards."
        )
    order = np.argsort(id_e)
    return id_e[order], jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *tree_parts)


def rows_of(id_e: Int[np.ndarray, "e"], ids_w: Int[np.ndarray, "w"], what: str) -> np.ndarray:
    """Indices of the ids `ids_w` in the sorted ids `id_e`.

    Raises: DataError naming `what` if one is missing.
    """
    place = np.minimum(np.searchsorted(id_e, ids_w), id_e.size - 1)
    absent = np.asarray(ids_w)[id_e[place] != ids_w]
    if absent.size:
        raise DataError(
            f"evaluation: {absent.size} sentences are not among {what} "
            f"(ids {absent[:5].tolist()}). "
            f"Expected a subset of its {id_e.size} ids; evaluate both on the same split."
        )
    return place


def mean_se(value_e: ArrayLike) -> tuple[float, float | None]:
    """Mean over sentences and its standard error, in float64; None for fewer than two sentences."""
    value_e = np.asarray(value_e, np.float64)
    with np.errstate(invalid="ignore"):
        mean = float(value_e.mean())
        se = float(value_e.std(ddof=1) / np.sqrt(value_e.size)) if value_e.size > 1 else None
    return mean, se
