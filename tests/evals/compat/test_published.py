"""Published estimators against numbers that the original code produced, where arrays do.

What hangs on a decoder stands with the parity tests of each model, `iw/*` of their fixtures.
"""

from pathlib import Path

import numpy as np
import pytest

from jvae.evals.compat import della, lagging, optimus, shared, t5vae, textae
from tests.tools import reference

HERE = Path(__file__).parent
STORED = HERE.parents[1] / "parity/optimus/metrics_seed0.npz"


def draw(mean, log_var, noise):
    return mean + np.exp(0.5 * log_var) * noise


def kl_of(mean, log_var):
    return 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)


def test_optimus_mutual_information_and_active_units():
    data = np.load(STORED)
    mean, log_var = data["mi/mu"], data["mi/logvar"]
    z = draw(mean, log_var, data["mi/eps"])
    actual = optimus.mutual_information(mean, log_var, z)
    np.testing.assert_allclose(actual, data["mi/value"], rtol=1e-5)
    np.testing.assert_allclose(shared.variance_of_means(mean), data["au/var"], rtol=1e-4)
    assert optimus.active_units(mean) == data["au/count"]
    assert optimus.active_units(mean, 0.2) == data["au/count_delta0.2"]


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_t5vae(pool):
    data = np.load(reference.path(f"t5_vae/{pool}_seed0.npz"))
    stored = {k.split("/")[1]: data[k] for k in data.files if k.startswith("metrics/")}
    mean, log_var = data["lat/mu"], data["lat/logvar"]
    kl_e = kl_of(mean, log_var).sum(axis=1)
    tokens = int(data["in/encoder_mask"].sum()) - len(mean)
    for call in ("calc_all", "calc_ppl"):
        rec_e = np.full(len(mean), stored[f"{call}_rec"])
        actual = t5vae.corpus(rec_e, kl_e, tokens)
        for name, value in actual._asdict().items():
            np.testing.assert_allclose(value, stored[f"{call}_{name}"], rtol=1e-3, err_msg=name)
        assert actual.elbo == pytest.approx(actual.kl - actual.rec) != pytest.approx(-actual.nll)
    z = draw(mean, log_var, stored["eps"])
    # Two half batches; the one on the whole batch draws anew.
    actual = t5vae.mutual_information(mean, log_var, z, batch=2)
    np.testing.assert_allclose(actual, stored["calc_all_mi"], rtol=1e-3)
    actual = t5vae.batch_mutual_information(mean, log_var, draw(mean, log_var, stored["eps_mi"]))
    np.testing.assert_allclose(actual, stored["calc_batch_mi"], rtol=1e-3)
    assert t5vae.active_units(mean) == stored["calc_all_au"]
    assert t5vae.active_units(mean, ddof=0) == stored["calc_au_count"]
    np.testing.assert_allclose(shared.variance_of_means(mean, 0), stored["calc_au_var"], rtol=1e-3)


def test_della_densities_are_means_over_layers():
    data = np.load(reference.path("della/uncond_seed0.npz"))
    z = np.moveaxis(data["lat/z"], 0, 1).astype(float)
    for name, stored in (("prior", "prior"), ("post", "post")):
        mean, log_var = (
            np.clip(np.moveaxis(data[f"lat/{name}_{part}"], 0, 1), -5, 5)
            for part in ("mu", "logvar")
        )
        log_p = -0.5 * ((z - mean) ** 2 * np.exp(-log_var) + log_var + shared.LOG_2PI)
        want = data[f"lat/log_{stored}_layer_mean"]
        np.testing.assert_allclose(log_p.sum(axis=(1, 2)) / z.shape[1], want, rtol=2e-4)
    kl_eg = data["lat/kl_per_layer"].T
    want = data["lat/kl_thresholded_layer_mean"]
    np.testing.assert_allclose(della.divergence(kl_eg), want, rtol=2e-4)


def test_lagging_and_textae_equal_slow_versions():
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(70, 3)), rng.normal(size=(70, 3)) - 1
    z = draw(mean, log_var, rng.normal(size=(70, 3)))

    def log_q(i, j):
        return sum(
            -0.5 * (np.log(2 * np.pi) + log_var[j, d] + (z[i, d] - mean[j, d]) ** 2 / var)
            for d, var in enumerate(np.exp(log_var[j]))
        )

    total = 0.0
    for first, last in ((0, 32), (32, 64), (64, 70)):
        for i in range(first, last):
            entropy = 0.5 * np.sum(1 + np.log(2 * np.pi) + log_var[i])
            densities = [np.exp(log_q(i, j)) for j in range(first, last)]
            total += -entropy - np.log(np.mean(densities))
    assert lagging.mutual_information(mean, log_var, z) == pytest.approx(total / 70, rel=1e-9)
    assert lagging.mutual_information(30 * mean, log_var - 9, 30 * mean) <= np.log(32)
    assert lagging.active_units(mean * [1, 0.05, 0.2]) == 2
    log_p_e, words = np.array([-8.0, -4.0]), 3 + 1 + 1 + 1
    for mode in (lagging, textae):
        assert mode.ppl(log_p_e, words) == pytest.approx(np.exp(12.0 / 6))
