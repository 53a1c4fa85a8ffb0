import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals import disentangle


def factors_and_codes(count=600, seed=0):
    """Independent factors; a code with one dimension for each and idle ones; the code turned."""
    rng = np.random.default_rng(seed)
    factor = rng.integers(0, (3, 4, 5), (count, 3))
    clean = np.concatenate([factor - factor.mean(0), rng.normal(size=(count, 2))], axis=1)
    clean[:, :3] += 0.05 * rng.normal(size=(count, 3))
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))
    return factor, clean, clean @ turn


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch):
    monkeypatch.setattr(disentangle, "POINTS", 200)
    monkeypatch.setattr(disentangle, "TREES", 5)


def test_a_code_of_one_dimension_per_factor_beats_a_rotated_and_a_random_one():
    factor, clean, turned = factors_and_codes()
    best = disentangle.disentanglement(clean, factor)
    worse = disentangle.disentanglement(turned, factor)
    chance = disentangle.disentanglement(clean, np.random.default_rng(1).permutation(factor))
    for name in ("mig", "dci_disentanglement", "dci_completeness"):
        assert getattr(best, name) > getattr(worse, name) + 0.2, name
        assert getattr(best, name) > getattr(chance, name) + 0.2, name
    assert best.z_diff > 0.95 and best.z_min_var > 0.95 and best.dci_informativeness > 0.95
    assert best.z_min_var > worse.z_min_var
    assert chance.z_diff < 0.6 and chance.dci_informativeness < 0.5
    assert disentangle.disentanglement(clean, factor) == best


def every_combination(copies=20):
    """Factors of 3, 4 and 5 values, in every combination equally often, in each half too."""
    grid = np.stack(np.meshgrid(*map(np.arange, (3, 4, 5)), indexing="ij"), axis=-1)
    return np.tile(grid.reshape(-1, 3), (copies, 1))


def test_the_known_extremes_of_a_perfect_and_of_a_random_latent(monkeypatch):
    monkeypatch.setattr(disentangle, "TREES", 20)
    factor = every_combination()
    perfect = disentangle.disentanglement(10.0 * factor[:, [2, 0, 1]] - 7, factor)
    # The gap of a dimension that is its factor, next to ones that know nothing of it, is 1.
    assert perfect.mig == pytest.approx(1, abs=1e-9)
    assert perfect.dci_informativeness == 1 and perfect.z_diff == 1 and perfect.z_min_var == 1
    assert perfect.dci_disentanglement > 0.97 and perfect.dci_completeness > 0.97
    noise = np.random.default_rng(0).normal(size=(len(factor), 6))
    chance = disentangle.disentanglement(noise, factor)
    assert 0 <= chance.mig < 0.01
    assert chance.dci_disentanglement < 0.03 and chance.dci_completeness < 0.03
    # Guessing: a third, a quarter and a fifth; and one factor of three.
    assert chance.dci_informativeness == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3, abs=0.05)
    assert chance.z_diff < 0.5 and chance.z_min_var < 0.5
    # Two dimensions that know the same of a factor leave no gap, however much it is.
    twice = np.repeat(factor, 2, axis=1)
    assert disentangle.mig(*disentangle.information(twice, factor)) == pytest.approx(0, abs=1e-9)


def test_information_is_that_of_the_joint_counts():
    feature = np.array([[0.0], [0.01], [0.99], [1.0]])
    factor = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    mi, entropy = disentangle.information(feature, factor)
    np.testing.assert_allclose(mi, [[np.log(2), 0]], atol=1e-12)
    np.testing.assert_allclose(entropy, np.log(2))
    twice, entropy = disentangle.information(np.hstack([feature, feature]), factor[:, :1])
    assert disentangle.mig(twice, entropy) == pytest.approx(0)
    alone, entropy = disentangle.information(np.hstack([feature, 0 * feature]), factor[:, :1])
    assert disentangle.mig(alone, entropy) == pytest.approx(1)


def test_what_never_varies_is_left_out():
    factor, clean, _ = factors_and_codes(200)
    wide = np.hstack([clean, np.ones((200, 1))])
    same = np.hstack([factor, np.zeros((200, 1), int)])
    actual = disentangle.disentanglement(wide, same)
    assert actual == disentangle.disentanglement(clean, factor)
    with pytest.raises(DataError, match="1 dimensions and 3 factors vary"):
        disentangle.disentanglement(clean[:, :1], factor)


def test_forests_read_a_limited_number_of_sentences(monkeypatch):
    factor, clean, _ = factors_and_codes(600)
    first = disentangle.dci(clean[:200], factor[:200])
    monkeypatch.setattr(disentangle, "FOREST", 200)
    assert disentangle.dci(clean, factor) == first
