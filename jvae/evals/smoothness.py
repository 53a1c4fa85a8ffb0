"""How evenly the sentences between two latents change: interpolation smoothness.

    IS = d(s_0, s_1) / sum_t d(s_t, s_t+step)

with the word mover's distance d; it is 1 for the shortest possible path. Word vectors are built
from the training split, not loaded, so that all models of a corpus are measured alike.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jvae.evals.collect import mean_se

WIDTH = 50
WINDOW = 2  # words on each side that count as context
WORDS = 5_000  # most frequent words get a vector; any two other words are orthogonal
VECTORS = f"PPMI of the train split, window {WINDOW}, rank {WIDTH}, unit length"


class WordVectors(NamedTuple):
    """Unit vectors of the frequent words of a corpus."""

    place: dict[str, int]
    vector_vd: Float[np.ndarray, "v d"]


def word_vectors(lines: Sequence[str], width: int = WIDTH) -> WordVectors:
    """Square root factors of the positive pointwise mutual information of neighbouring words.

    Source: Levy & Goldberg 2014, section 3; equal input gives equal vectors.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import eigsh

    split = [line.split() for line in lines]
    common = Counter(word for words in split for word in words).most_common(WORDS)
    place = {word: i for i, (word, _) in enumerate(sorted(common))}
    count: Counter[tuple[int, int]] = Counter()
    for words in split:
        ids = [place.get(word, -1) for word in words]
        for i, a in enumerate(ids):
            for b in ids[i + 1 : i + 1 + WINDOW]:
                if a >= 0 and b >= 0:
                    count[a, b] += 1
                    count[b, a] += 1
    size = len(place)
    if not count:
        return WordVectors(place, np.eye(size))
    row, column = np.array(list(count)).T
    pair = np.fromiter(count.values(), float)
    margin = np.bincount(row, pair, minlength=size)
    ppmi = np.maximum(np.log(pair * pair.sum() / (margin[row] * margin[column])), 0)
    matrix = coo_matrix((ppmi, (row, column)), (size, size)).tocsr()
    if size <= 2 * width:
        value, vector_vd = np.linalg.eigh(matrix.toarray())
    else:
        value, vector_vd = eigsh(matrix, k=width, v0=np.ones(size))
    vector_vd = vector_vd * np.sqrt(np.abs(value))
    length = np.linalg.norm(vector_vd, axis=1, keepdims=True)
    return WordVectors(place, vector_vd / np.maximum(length, 1e-12))


def _cost(words: WordVectors, a: Sequence[str], b: Sequence[str]) -> Float[np.ndarray, "a b"]:
    """Euclidean distances; words without a vector are orthogonal to all others."""

    def vectors(part: Sequence[str]) -> np.ndarray:
        vector_nd = np.zeros((len(part), words.vector_vd.shape[1]))
        for i, word in enumerate(part):
            if word in words.place:
                vector_nd[i] = words.vector_vd[words.place[word]]
        return vector_nd

    same = np.array([[x == y for y in b] for x in a])
    cosine = np.where(same, 1.0, vectors(a) @ vectors(b).T)
    return np.sqrt(np.maximum(2 - 2 * cosine, 0.0))


def word_mover(words: WordVectors, a: str, b: str) -> float:
    """Word mover's distance of two sentences as bags of words of mass 1.

    Source: Kusner et al. 2015, eq. 1. Words that both bags share are not moved, which is optimal by
    the triangle inequality and keeps the linear program small.
    """
    bags = []
    for text in (a, b):
        split = text.split() or [""]
        bags.append({word: n / len(split) for word, n in sorted(Counter(split).items())})
    surplus = [
        {
            w: m - counterpart.get(w, 0.0)
            for w, m in bag.items()
            if m - counterpart.get(w, 0.0) > 1e-12
        }
        for bag, counterpart in (bags, bags[::-1])
    ]
    if not surplus[0]:
        return 0.0
    from scipy.optimize import linprog
    from scipy.sparse import identity, kron, vstack

    cost = _cost(words, list(surplus[0]), list(surplus[1]))
    rows, columns = cost.shape
    out = kron(identity(rows), np.ones((1, columns)))
    into = kron(np.ones((1, rows)), identity(columns))
    mass = np.array([*surplus[0].values(), *surplus[1].values()])
    # One equation follows from the others; dropping it avoids contradictions from rounding.
    equations = vstack([out, into]).tocsr()[:-1]
    plan = linprog(cost.ravel(), A_eq=equations, b_eq=mass[:-1], method="highs")
    if plan.status != 0:
        raise RuntimeError(f"word_mover: no transport plan found ({plan.message})")
    return float(plan.fun)


class Smoothness(NamedTuple):
    """Statistics over the pairs whose ends differ."""

    mean: float | None
    se: float | None
    highest: float | None
    lowest: float | None
    pairs: int
    same_ends: int  # pairs left out because both ends are the same sentence


def smoothness(words: WordVectors, paths: Sequence[Sequence[str]]) -> Smoothness:
    """Interpolation smoothness of decoded paths, each with both ends."""
    distances: dict[tuple[str, str], float] = {}

    def distance(a: str, b: str) -> float:
        pair = (a, b) if a <= b else (b, a)
        if pair not in distances:
            distances[pair] = word_mover(words, *pair)
        return distances[pair]

    values, same = [], 0
    for path in paths:
        whole = distance(path[0], path[-1])
        steps = sum(distance(a, b) for a, b in zip(path, path[1:], strict=False))
        if whole == 0.0:
            same += 1
        else:
            values.append(whole / steps)
    if not values:
        return Smoothness(None, None, None, None, 0, same)
    mean, se = mean_se(values)
    return Smoothness(mean, se, max(values), min(values), len(values), same)


def other_inside(paths: Sequence[Sequence[str]]) -> list[list[str]]:
    """The baseline: each path keeps its ends but takes the inner points of another path."""
    return [[path[0], *paths[i - 1][1:-1], path[-1]] for i, path in enumerate(paths)]


def smoothness_rows(
    words: WordVectors, paths: Sequence[Sequence[str]], name: str = "interpolation"
) -> list[dict[str, Any]]:
    """Arguments of `Report.add` for the mean with its baseline, and the extreme values."""
    scores = smoothness(words, paths)
    baseline = smoothness(words, other_inside(paths)) if len(paths) > 1 else None
    note = f"{scores.pairs} pairs, word mover's distance; {scores.same_ends} of equal ends left out"
    mean = dict(name=f"{name}_smoothness", value=scores.mean, unit="higher is smoother")
    return [
        mean | dict(se=scores.se, baseline=baseline.mean if baseline else None, note=note),
        dict(name=f"{name}_smoothness_max", value=scores.highest, unit=""),
        dict(name=f"{name}_smoothness_min", value=scores.lowest, unit=""),
    ]
