"""MAUVE at its extremes, and between them in order."""

import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals.mauve import curve_area, mauve, read_features

RNG = np.random.default_rng(0)
REFERENCES = RNG.normal(size=(300, 6))


def test_area_of_equal_and_of_disjoint_histograms():
    p = np.array([0.2, 0.3, 0.5, 0.0])
    assert curve_area(p, p) == pytest.approx(1.0, abs=1e-6)
    q = np.array([0.0, 0.0, 0.0, 1.0])
    # Disjoint: KL(p || r) = -log of p's share of the mixture, so the curve is x^.2 + y^.2 = 1.
    grid = np.linspace(0, 1, 200_001)
    exact = np.trapezoid((1 - grid**0.2) ** 5, grid)
    assert curve_area(p, q) == pytest.approx(exact, abs=5e-3)
    assert curve_area(p, q) == pytest.approx(curve_area(q, p))


def test_farther_samples_score_lower():
    values = [mauve(REFERENCES[::-1] + shift, REFERENCES) for shift in (0.0, 0.7, 4.0)]
    assert values[0].value == pytest.approx(1.0) and values[0].buckets == 30
    assert values[0].value > values[1].value + 0.02 > values[2].value + 0.04
    assert values[2].value < 0.1 and values[1].spread > 0


def test_input_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="expected the same width and at least 20 lines"):
        mauve(REFERENCES[:10], REFERENCES)
    np.savez(tmp_path / "a.npz", samples=REFERENCES)
    with pytest.raises(DataError, match="arrays `samples` and `references`"):
        read_features(tmp_path / "a.npz")
    for damaged in (b"", b"PK\x03\x04 cut off"):
        (tmp_path / "b.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="b.npz: .* expected an .npz file"):
            read_features(tmp_path / "b.npz")
    with pytest.raises(DataError, match="nothing.npz"):
        read_features(tmp_path / "nothing.npz")
    np.savez(tmp_path / "a.npz", samples=REFERENCES, references=REFERENCES[:30])
    assert [part.shape for part in read_features(tmp_path / "a.npz")] == [(300, 6), (30, 6)]
