import numpy as np
import pytest
from scipy.optimize import linprog

from jvae.evals import smoothness

LINES = ["a man eats bread", "a man eats fruit", "a dog eats bread", "two dogs run fast"] * 3


def plain_transport(words, a, b):
    """The whole program, nothing taken out of it."""
    a, b = a.split(), b.split()
    cost = np.zeros((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            one, other = (
                words.vector_vd[words.place[w]] if w in words.place else np.zeros(len(words.place))
                for w in (x, y)
            )
            cost[i, j] = 0.0 if x == y else np.sqrt(max(2 - 2 * float(one @ other), 0))
    equations = [np.kron(np.eye(len(a))[i], np.ones(len(b))) for i in range(len(a))]
    equations += [np.kron(np.ones(len(a)), np.eye(len(b))[j]) for j in range(len(b))]
    mass = [1 / len(a)] * len(a) + [1 / len(b)] * len(b)
    return linprog(cost.ravel(), A_eq=np.array(equations), b_eq=mass).fun


def test_word_mover_is_the_whole_transport_program():
    words = smoothness.word_vectors(LINES)
    np.testing.assert_allclose(np.linalg.norm(words.vector_vd, axis=1), 1.0)
    pairs = [
        ("a man eats bread", "a dog eats fruit"),
        ("a man eats bread", "two dogs run"),
        ("a a man", "man eats a bread bread"),
        ("a zebra eats", "a man walks"),  # words of no vector
    ]
    for a, b in pairs:
        actual = smoothness.word_mover(words, a, b)
        assert actual == pytest.approx(plain_transport(words, a, b), abs=1e-8), (a, b)
        assert actual == pytest.approx(smoothness.word_mover(words, b, a), abs=1e-8)
    assert smoothness.word_mover(words, "man a eats", "eats a man") == 0
    # Words of like neighbours are near: the man and the dog both eat, and neither is "fast".
    near, far = ("dog", "man"), ("dog", "fast")
    assert smoothness.word_mover(words, *near) < smoothness.word_mover(words, *far)


def test_many_words_take_the_sparse_way():
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{i}" for i in rng.integers(0, 150, 8)) for _ in range(200)]
    words = smoothness.word_vectors(lines, width=10)
    assert words.vector_vd.shape == (len(words.place), 10)
    again = smoothness.word_vectors(lines, width=10)
    np.testing.assert_array_equal(words.vector_vd, again.vector_vd)


def test_smoothness_of_paths():
    words = smoothness.word_vectors(LINES)
    a, m, b = "a man eats bread", "a dog eats bread", "two dogs run fast"
    whole = smoothness.word_mover(words, a, b)
    detour = sum(smoothness.word_mover(words, *pair) for pair in ((a, m), (m, b)))
    straight, bent, still = [a, a, b], [a, m, b], [a, m, a]
    actual = smoothness.smoothness(words, [straight, bent, still])
    assert actual.pairs == 2 and actual.same_ends == 1
    assert actual.highest == pytest.approx(1.0)
    assert actual.lowest == pytest.approx(whole / detour)
    assert actual.mean == pytest.approx((1 + whole / detour) / 2)
    assert smoothness.smoothness(words, [still]).mean is None
    # There and back is longer than straight on, and so is the baseline.
    rows = smoothness.smoothness_rows(words, [straight, [b, b, a], [m, a, a]])
    assert rows[0]["value"] > rows[0]["baseline"] and rows[0]["se"] is not None
    assert smoothness.other_inside([[1, 2, 3], [4, 5, 6]]) == [[1, 5, 3], [4, 2, 6]]
