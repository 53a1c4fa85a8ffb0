"""Every kind against a mixture whose density is known, and the contract of all kinds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.errors import ConfigError, InputError, InputTypeError
from jvae.fitted import FITTED, KEY, Fitted, fit, join
from jvae.fitted import prior as prior_module
from jvae.fitted.contract import Density
from jvae.fitted.relabel import transfer
from jvae.parallel.mesh import make_mesh

QUICK = {
    "gaussian": {},
    "gmm": dict(components=2, starts=1, iterations=3),
    "flow": dict(layers=2, width=8, steps=2, batch=16),
    "diffusion": dict(width=8, heads=2, layers=1, updates=2, batch=16, steps=3, density_steps=12),
}


def fitted(kind, z_ngz, labels=None, seed=0, **options) -> Fitted:
    built = FITTED[kind].options(**options)
    names = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    return fit(kind, built, z_ngz, jax.random.key(seed), labels, labels=names)


@pytest.fixture
def optimized():
    """Fits of thousands of updates run longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def draw(prior, params, n, seed=0):
    return np.asarray(
        jax.jit(prior.sample)(params, example_keys(jax.random.key(seed), jnp.arange(n)))
    )


OUTLIERS = {
    "a few far away": lambda z_nd: np.concatenate([z_nd[:3] * 1e3, z_nd[3:]]),
    "a tight cluster": lambda z_nd: np.concatenate([50 + 1e-3 * z_nd[:20], z_nd[20:]]),
    "all the same": lambda z_nd: np.ones_like(z_nd),
}


@pytest.mark.parametrize("case", OUTLIERS)
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_mixture_of_latents_with_outliers_is_finite(case, covariance):
    z_nd = np.random.default_rng(0).standard_normal((4_000, 8)).astype(np.float32)
    prior = fitted(
        "gmm", OUTLIERS[case](z_nd)[:, None], components=5, starts=2, covariance=covariance
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(prior.params))
    z_n1d = draw(prior.prior(), join({}, prior), 200)
    assert np.isfinite(z_n1d).all()
    if case == "a few far away":  # the others have a component of their own scale
        assert np.median(np.abs(z_n1d)) < 2


def test_a_fit_that_diverges_is_an_error(monkeypatch):
    z_n1d = np.random.default_rng(0).standard_normal((64, 1, 2)).astype(np.float32)
    diverged = Density(lambda *_: {"mean": jnp.array([1.0, jnp.nan])}, None, None)
    monkeypatch.setattr(prior_module, "density", lambda *_: diverged)
    with pytest.raises(InputError, match="flow prior did not converge: its parameters are not fin"):
        fitted("flow", z_n1d)


def test_a_label_may_be_a_number():
    z_n1d = np.random.default_rng(0).standard_normal((64, 1, 2)).astype(np.float32)
    prior = fitted("gaussian", z_n1d, np.arange(64) % 2)
    assert prior.label_of(1) == prior.label_of("1") == prior.label_of(np.int64(1)) == 1
    with pytest.raises(InputError, match="label '3' is unknown"):
        prior.label_of(3)
    moved = transfer(prior, z_n1d, 0, [1] * 64)
    assert (moved == transfer(prior, z_n1d, "0", ["1"] * 64)).all()
    with pytest.raises(InputTypeError, match="expected a list with one label per latent"):
        transfer(prior, z_n1d[:2], "0", "00")


def test_values_of_options_are_checked_when_a_prior_is_used():
    z_n1d = np.random.default_rng(0).standard_normal((64, 1, 2)).astype(np.float32)
    prior = fitted("diffusion", z_n1d, **QUICK["diffusion"])
    for options, message in (
        (dict(sampler="ddim"), "prior.sampler='ddim': expected one of deterministic, stochastic"),
        (dict(steps=1), "prior.steps=1: expected an integer from 2"),
        (dict(steps=2.5), "prior.steps=2.5: expected an integer"),
        (dict(guidance=2.0), "--prior.guidance has no effect: prior 'diffusion' was fitted withou"),
    ):
        with pytest.raises(ConfigError, match=message):
            prior.using(**options)


def test_heads_need_not_divide_the_automatic_width():
    z_n3d = np.random.default_rng(0).standard_normal((64, 3, 4)).astype(np.float32)
    prior = fitted("diffusion", z_n3d, heads=3, layers=1, updates=2, batch=16, steps=3)
    assert draw(prior.prior(), join({}, prior), 2).shape == (2, 3, 4)


@pytest.mark.multidevice
@pytest.mark.parametrize("kind", sorted(QUICK))
def test_several_devices_fit_the_same_prior(kind):
    """30 latents do not divide among 4 devices."""
    z_n1d = np.random.default_rng(0).standard_normal((30, 1, 2)).astype(np.float32)
    built = FITTED[kind].options(**QUICK[kind])
    one, four = (
        fit(kind, built, z_n1d, jax.random.key(0), mesh=make_mesh({"data": count}))
        for count in (1, 4)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one.params, four.params
    )


def reaches_the_entropy(toys, kind, width, bound, n=30_000, **options):
    mixture = toys.mixture(width)
    z_n1d, _ = mixture.sample(n, seed=0)
    prior = fitted(kind, z_n1d, **options)
    params = join({}, prior)
    excess = toys.excess(prior.prior(), params, mixture)
    plain = fitted("gaussian", z_n1d)
    assert toys.excess(plain.prior(), join({}, plain), mixture) > 2 * bound  # one Gaussian does not
    assert -0.02 < excess < bound
    return prior, params


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 32])
def test_a_mixture_finds_a_mixture(toys, width):
    n = 8_000 if width == 2 else 60_000
    actual, params = reaches_the_entropy(toys, "gmm", width, 0.05, n, components=2)
    z_n1d, mixture = draw(actual.prior(), params, 2_000), toys.mixture(width)
    assert toys.energy_p(z_n1d[:, 0], mixture.sample(2_000, 7)[0][:, 0]) > 0.01


@pytest.mark.slow
def test_diagonal_components(toys):
    mixture = toys.mixture(2)
    mixture = mixture._replace(factor_kdd=mixture.factor_kdd * np.eye(2)[None])
    prior = fitted("gmm", mixture.sample(8_000, 0)[0], components=2, covariance="diagonal")
    assert prior.params["density"]["factor_ck"].shape == (1, 2, 2)
    assert -0.02 < toys.excess(prior.prior(), join({}, prior), mixture) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("width, bound", [(2, 0.05), (32, 0.15)])
def test_a_flow_finds_a_mixture(optimized, toys, width, bound):
    actual, params = reaches_the_entropy(toys, "flow", width, bound, 100_000)
    z_n1d, mixture = draw(actual.prior(), params, 2_000), toys.mixture(width)
    assert toys.energy_p(z_n1d[:, 0], mixture.sample(2_000, 7)[0][:, 0]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 32])
def test_samples_of_a_diffusion_are_those_of_a_mixture(optimized, toys, width):
    mixture = toys.mixture(width)
    z_n1d, _ = mixture.sample(100_000, seed=0)
    others = [mixture.sample(2_000, seed=seed)[0][:, 0] for seed in range(7, 13)]

    def p_values(prior, params):
        """p of six tests: of any single one, too small a p is not rare."""
        z_nd = draw(prior, params, 2_000)[:, 0]
        return [toys.energy_p(z_nd, other_nd) for other_nd in others]

    plain = fitted("gaussian", z_n1d)
    assert np.median(p_values(plain.prior(), join({}, plain))) < 0.01
    diffusion = fitted("diffusion", z_n1d)
    params = join({}, diffusion)
    for sampler, steps in (("deterministic", 20), ("stochastic", 50)):
        prior = diffusion.using(sampler=sampler, steps=steps).prior()
        assert np.median(p_values(prior, params)) > 0.05, sampler
    if width == 2:  # the exact trace in 32 dimensions takes 32 derivatives per step
        exact = diffusion.using(trace="exact").prior()
        assert -0.02 < toys.excess(exact, params, mixture, 2_000) < 0.25


# --------------------------------------------------------------------------------------------------
# The contract of all kinds, on little data.


def latents(shape=(1, 2), n=64, seed=0):
    rng = np.random.default_rng(seed)
    scale_gz = np.linspace(0.1, 20.0, shape[0] * shape[1]).reshape(shape)
    return (5.0 + scale_gz * rng.normal(size=(n, *shape))).astype(np.float32)


@functools.cache
def quick(kind, shape=(1, 2)) -> Fitted:
    return fitted(kind, latents(shape), **QUICK[kind])


@pytest.mark.parametrize("shape", [(1, 2), pytest.param((2, 3), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k in ("flow", "diffusion"))) for k in QUICK],
)
def test_draws_belong_to_keys_and_latents_keep_their_scale(kind, shape):
    prior = quick(kind, shape)
    params = join({"decoder": {}}, prior)
    assert set(params) == {"decoder", KEY}
    z_egz = draw(prior.prior(), params, 2_000)
    assert z_egz.shape == (2_000, *shape) and np.isfinite(z_egz).all()
    np.testing.assert_allclose(draw(prior.prior(), params, 3), z_egz[:3], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(z_egz.mean(axis=0), latents(shape).mean(axis=0), atol=6.0)
    ratio_gz = z_egz.std(axis=0) / latents(shape).std(axis=0)
    assert (ratio_gz > 0.5).all() and (ratio_gz < 2.0).all()
    assert prior.prior() is dataclasses.replace(prior, name="other").prior()  # compiled once


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k in ("flow", "diffusion"))) for k in QUICK],
)
def test_a_density_has_mass_one(kind):
    """By quadrature."""
    use = dict(trace="exact") if kind == "diffusion" else {}
    prior = quick(kind).using(**use)
    shift_d, scale_d = (prior.params[name][0] for name in ("shift_gz", "scale_gz"))
    u_n = np.linspace(-8, 8, 161)
    z_n1d = np.stack(np.meshgrid(u_n, u_n), axis=-1).reshape(-1, 1, 2) * scale_d + shift_d
    log_prob = jax.jit(prior.prior().log_prob)
    nats_n = np.asarray(log_prob(join({}, prior), jnp.asarray(z_n1d, jnp.float32)), np.float64)
    mass = np.sum(np.exp(nats_n)) * float(np.prod(scale_d)) * (u_n[1] - u_n[0]) ** 2
    assert mass == pytest.approx(1.0, abs=2e-3)


@pytest.mark.fast_on("gaussian")
@pytest.mark.parametrize("kind", ["gaussian", "flow", "diffusion"])
def test_noise_and_back(kind):
    maps = quick(kind).maps()
    assert maps is not None
    u_egz = maps.to_noise(latents()[:5])
    assert np.abs(u_egz).max() < 5
    back_egz, spread_gz = maps.from_noise(u_egz) - latents()[:5], latents().std(axis=0)
    assert np.abs(back_egz / spread_gz).max() < (0.05 if kind == "diffusion" else 1e-3)


def test_a_mixture_has_no_map_to_noise():
    assert quick("gmm").maps() is None


@pytest.mark.fast_on("gaussian")
@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_labels(kind, toys):
    mixture = toys.mixture(2)
    z_n1d, label_n = mixture.sample(2_000, seed=0)
    options = dict(components=1, starts=1) if kind == "gmm" else {}
    prior = fitted(kind, z_n1d, label_n, **options)
    params = join({}, prior)
    assert prior.labels == ("0", "1") and prior.label_of("1") == 1
    means = [draw(prior.prior(label), params, 500)[:, 0, 0].mean() for label in ("0", "1")]
    np.testing.assert_allclose(means, [-2.0, 2.0], atol=0.2)
    # Without a label it is the mixture, which is the truth here.
    assert abs(toys.excess(prior.prior(), params, mixture)) < 0.02
    nats = [jax.jit(prior.prior(label).log_prob)(params, z_n1d[:50]) for label in ("0", "1")]
    np.testing.assert_allclose(np.stack(nats, 1), mixture.each(z_n1d[:50]), rtol=0.1, atol=0.5)
    share = np.mean(draw(prior.prior(), params, 2_000)[:, 0, 0] > 0.3)
    assert share == pytest.approx(0.7, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_label_is_learned(optimized, kind, toys):
    z_n1d, label_n = toys.mixture(2).sample(20_000, seed=0)
    length = dict(steps=600) if kind == "flow" else dict(updates=1_500)
    prior = fitted(kind, z_n1d, label_n, **length)
    params = join({}, prior)
    for label, mean in (("0", -2.0), ("1", 2.0)):
        drawn = draw(prior.prior(label), params, 1_000)[:, 0, 0]
        assert drawn.mean() == pytest.approx(mean, abs=0.2)
        assert np.mean(np.sign(drawn) == np.sign(mean)) > 0.97
    share = np.mean(draw(prior.prior(), params, 2_000)[:, 0, 0] > 0.3)
    assert share == pytest.approx(0.7, abs=0.05)
    with pytest.raises(InputError, match="maps latents to noise by label"):
        prior.maps()
    if kind == "diffusion":  # guidance moves samples away from the other label
        strong = draw(prior.using(guidance=3.0).prior("1"), params, 1_000)[:, 0, 0]
        assert strong.mean() > 2.1


@pytest.mark.slow
def test_the_trace_of_hutchinson_is_near_the_exact_one():
    prior = quick("diffusion", (2, 3))
    params, z_egz = join({}, prior), jnp.asarray(latents((2, 3))[:8])
    exact, rough = (
        np.asarray(jax.jit(fitted.prior().log_prob)(params, z_egz))
        for fitted in (prior.using(trace="exact"), prior.using(trace="hutchinson", probes=64))
    )
    np.testing.assert_allclose(rough, exact, atol=1.0)


@pytest.mark.slow
def test_a_density_that_is_not_computed():
    prior = quick("diffusion")
    with pytest.raises(ConfigError, match="--prior.trace=exact"):
        prior.prior().log_prob(join({}, prior), jnp.zeros((1, 1, 2)))


def test_a_dimension_that_never_varies_and_a_rare_label():
    z_ngz = latents()
    z_ngz[:, 0, 1] = 2.0
    label_n = np.arange(64) // 62  # the second label has two latents
    prior = fitted("gaussian", z_ngz, label_n)
    z_egz = draw(prior.prior("1"), join({}, prior), 100)
    assert np.isfinite(z_egz).all() and np.allclose(z_egz[:, 0, 1], 2.0, atol=1e-3)


def test_mistakes():
    z_ngz = latents()
    with pytest.raises(InputError, match=r"shape \(1, 1, 2\)"):
        fitted("gaussian", z_ngz[:1])
    with pytest.raises(InputError, match="not finite"):
        fitted("gaussian", np.full((4, 1, 3), np.nan))
    with pytest.raises(InputError, match="label '1' has 1 latents"):
        fitted("gaussian", z_ngz, (np.arange(64) == 3).astype(np.int32))
    plain = fitted("gaussian", z_ngz)
    with pytest.raises(InputError, match="was fitted without labels"):
        plain.prior("positive")
    with pytest.raises(ConfigError, match="gaussian priors have no option of that name"):
        plain.using(ridge=1.0)
    labelled = fitted("gaussian", z_ngz, np.arange(64) % 2)
    with pytest.raises(InputError, match="label '2' is unknown to prior 'gaussian'"):
        labelled.prior("2")
    with pytest.raises(ConfigError, match="did you mean 'gmm'"):
        FITTED["gm"]
