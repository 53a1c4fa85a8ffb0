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
    found = disentangle.disentanglement(wide, same)
    assert found == disentangle.disentanglement(clean, factor)
    with pytest.raises(DataError, match="1 dimensions and 3 factors vary"):
        disentangle.disentanglement(clean[:, :1], factor)
