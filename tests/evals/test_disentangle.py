"""MIG and DCI at their known extremes, and against sums written out."""

import numpy as np
import pytest

from jvae.data import grammar
from jvae.errors import DataError
from jvae.evals import disentangle

rng = np.random.default_rng(0)
FACTORS = np.stack([rng.integers(0, n, 3_000) for n in (2, 3, 5)], axis=1)
PERFECT = FACTORS[:, [2, 0, 1]] * [1.0, -3.0, 0.5]  # one dimension each, in another order
RANDOM = rng.normal(size=(3_000, 5))


def test_a_perfect_latent():
    found = disentangle.mig(np.hstack([PERFECT, RANDOM[:, :1]]), FACTORS)
    assert found.mean > 0.98 and found.gap_f.min() > 0.97
    assert found.information_df.argmax(axis=0).tolist() == [1, 2, 0]
    dci = disentangle.dci(PERFECT, FACTORS, trees=4)
    assert min(dci.disentanglement, dci.completeness) > 0.98 and dci.informativeness == 1
    np.testing.assert_array_equal(dci.importance_df.argmax(axis=0), [1, 2, 0])


def test_a_random_latent():
    assert disentangle.mig(RANDOM, FACTORS).mean < 0.01
    found = disentangle.dci(RANDOM[:600], FACTORS[:600], trees=4)
    assert max(found.disentanglement, found.completeness) < 0.05
    assert abs(found.informativeness - found.majority) < 0.1


def test_one_factor_in_two_dimensions_is_no_gap_but_is_disentangled():
    twice = np.hstack([PERFECT, PERFECT])
    assert disentangle.mig(twice, FACTORS).mean == pytest.approx(0, abs=1e-9)
    found = disentangle.dci(twice, FACTORS, trees=8)
    assert found.disentanglement > 0.98 and found.completeness < 0.7


def test_sums_written_out():
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    want = 0.25 * np.log(0.25 / (0.5 * 0.25)) + 0.25 * np.log(0.25 / (0.5 * 0.75))
    want += 0.5 * np.log(0.5 / (0.5 * 0.75))
    assert disentangle.mutual_information(a, b) == pytest.approx(want)
    assert disentangle.disentanglement(np.array([[1.0, 1.0], [2.0, 0.0]])) == pytest.approx(0.5)
    assert disentangle.disentanglement(np.ones((3, 2))) == pytest.approx(0)


def test_dependent_factors_have_a_ceiling():
    factor_ef = np.array([s.factors for s in grammar.corpus("test", 1_000)])
    found = disentangle.ceiling(factor_ef)
    names = [factor.name for factor in grammar.FACTORS]
    gap = dict(zip(names, found.gap_f, strict=True))
    assert gap["count"] > 0.95 and gap["garment"] < 0.8  # a colour needs a garment
    assert 0.3 < found.mean < 1


def test_factors_that_do_not_fit():
    with pytest.raises(DataError, match="factor 1 has one value"):
        disentangle.mig(RANDOM, FACTORS * [1, 0, 1])
    with pytest.raises(DataError, match="do not fit"):
        disentangle.dci(RANDOM[:5], FACTORS)
