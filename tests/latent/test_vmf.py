"""Latents on spheres: von Mises-Fisher posteriors and their uniform prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import integrate
from scipy import special

from jvae.api import SPHERE, example_keys
from jvae.errors import ConfigError
from jvae.latent import vmf
from jvae.latent.choice import Choice
from jvae.latent.densities import Affine, amortized, build_density
from jvae.latent.kl import kl, per_dimension
from jvae.latent.priors import build_prior
from jvae.models import FAMILIES, lstm_vae
from jvae.nn.lstm import LstmConfig
from jvae.training.objectives import Objective, check_kl

DRAWS = 20_000


def _density(shape, kappa):
    head = lambda outputs, axes: Affine(lambda key: {}, lambda params, h_ed: h_ed)  # noqa: E731
    return build_density(Choice("vmf", (("kappa", kappa),)), head, shape)


@pytest.mark.parametrize("order", [0.0, 0.5, 15.0, 383.0])
@pytest.mark.parametrize("x", [1e-3, 3.0, 80.0, 5_000.0])
def test_log_bessel_is_that_of_scipy_and_goes_on_where_that_vanishes(order, x):
    scaled = special.ive(order, x)
    if scaled > 0:
        np.testing.assert_allclose(vmf.log_bessel(order, x), np.log(scaled) + x, rtol=1e-9)
    else:  # the first two terms of the power series
        small = order * np.log(x / 2) - special.gammaln(order + 1)
        small += np.log1p(x**2 / 4 / (order + 1))
        np.testing.assert_allclose(vmf.log_bessel(order, x), small, rtol=1e-7)


@pytest.mark.parametrize("size, kappa", [(2, 0.5), (2, 40.0), (3, 4.0), (6, 10.0)])
def test_constants_are_those_of_numerical_integration(size, kappa):
    """Over the cosine with the mean, whose surface measure is that of a sphere of one dimension
    less times sin(angle) ** (size - 2).
    """
    angle = np.linspace(0.0, np.pi, 200_001)
    measure = np.exp(vmf.log_area(size - 1)) * np.sin(angle) ** (size - 2)
    log_q = kappa * np.cos(angle) + vmf.log_scale(size, kappa)
    with jax.enable_x64(True):
        integral = lambda y: float(integrate.trapezoid(y * measure, angle))  # noqa: E731
        np.testing.assert_allclose(integral(np.ones_like(angle)), np.exp(vmf.log_area(size)), 1e-8)
        np.testing.assert_allclose(integral(np.exp(log_q)), 1.0, rtol=1e-8)
        cosine = integral(np.exp(log_q) * np.cos(angle))
        nats = integral(np.exp(log_q) * (log_q + vmf.log_area(size)))
    np.testing.assert_allclose(vmf.mean_cosine(size, kappa), cosine, rtol=1e-8)
    np.testing.assert_allclose(vmf.kl_uniform(size, kappa), nats, rtol=1e-7)


@pytest.mark.slow
def test_draws_have_the_density_and_the_kl_that_is_reported():
    groups, size, kappa = 2, 5, 9.0
    density, prior = _density((groups, size), kappa), build_prior(Choice("uniform_sphere"), (2, 5))
    h_egz = jnp.asarray(np.random.default_rng(0).normal(size=(1, groups, size)), jnp.float32)

    @jax.jit
    def run(h_egz, toward_gz):
        post = density.read({"head": {}}, h_egz)
        key_ke = example_keys(jax.random.key(1), jnp.arange(1), jnp.arange(DRAWS))

        def along(h_egz):
            z_kegz = density.sample({}, density.read({"head": {}}, h_egz), key_ke)
            return jnp.sum(z_kegz * toward_gz[None, None], axis=(1, 2, 3))

        z_kegz = density.sample({}, post, key_ke)
        log_q_k = jax.vmap(lambda z: density.log_prob({}, post, z))(z_kegz)[:, 0]
        log_p_k = jax.vmap(lambda z: prior.prior.log_prob({}, z))(z_kegz)[:, 0]
        slope_k = jax.jvp(along, (h_egz,), (toward_gz[None],))[1]
        nats = kl({}, amortized(density, None), post, z_kegz[0], prior.prior)
        return post.direction_egz, z_kegz[:, 0], log_q_k - log_p_k, slope_k, nats.nats_e

    toward_gz = jnp.asarray(np.random.default_rng(1).normal(size=(groups, size)), jnp.float32)
    mean_egz, z_kgz, ratio_k, slope_k, nats_e = jax.device_get(run(h_egz, toward_gz))
    np.testing.assert_allclose(np.linalg.norm(mean_egz, axis=2), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(z_kgz, axis=2), 1.0, rtol=1e-5)

    def close(found_k, want):
        error = np.std(found_k, axis=0) / np.sqrt(DRAWS)
        assert np.all(np.abs(np.mean(found_k, axis=0) - want) < 4 * error)

    # Monte Carlo with exact densities.
    close(ratio_k.astype(np.float64), nats_e[0])
    np.testing.assert_allclose(nats_e[0], groups * vmf.kl_uniform(size, kappa), rtol=1e-6)
    cosine = vmf.mean_cosine(size, kappa)
    close(z_kgz.astype(np.float64), cosine * mean_egz[0])
    # The mean of the gradient is the gradient of the mean.
    tangent = jax.jvp(vmf.unit, (h_egz,), (toward_gz[None],))[1]
    close(slope_k.astype(np.float64), cosine * float(jnp.sum(tangent * toward_gz[None])))


def test_the_cosine_has_the_density_of_its_own():
    size, kappa = 4, 3.0
    draw = jax.jit(jax.vmap(lambda key: vmf.cosine(key, size, kappa)))
    w_n = np.sort(np.asarray(draw(jax.random.split(jax.random.key(0), DRAWS)), np.float64))
    grid = np.linspace(-1, 1, 20_001)
    mass = np.exp(kappa * grid) * (1 - grid**2) ** ((size - 3) / 2)
    below = np.concatenate([[0.0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    gap = np.interp(w_n, grid, below / below[-1]) - (np.arange(DRAWS) + 0.5) / DRAWS
    assert np.max(np.abs(gap)) < 1.63 / np.sqrt(DRAWS)  # Kolmogorov and Smirnov, 1 %


def test_the_uniform_prior_has_no_direction():
    prior = build_prior(Choice("uniform_sphere"), (1, 3)).prior
    assert prior.support == SPHERE
    z_ez = jax.jit(prior.sample)({}, example_keys(jax.random.key(0), jnp.arange(DRAWS)))[:, 0]
    z_ez = np.asarray(z_ez, np.float64)
    np.testing.assert_allclose(np.linalg.norm(z_ez, axis=1), 1.0, rtol=1e-6)
    assert np.all(np.abs(z_ez.mean(axis=0)) < 4 * (1 / 3 / DRAWS) ** 0.5)
    nats = np.asarray(prior.log_prob({}, z_ez[:2, None].astype(np.float32)))
    np.testing.assert_allclose(nats, -np.log(4 * np.pi), rtol=1e-6)


def _lstm_vae(**choices):
    stack = LstmConfig(3, 5, 7)
    return lstm_vae.build(lstm_vae.LstmVaeConfig(stack, stack, latent=4, **choices))


VMF, UNIFORM = Choice("vmf"), Choice("uniform_sphere")


def test_prior_and_posterior_lie_in_one_place():
    with pytest.raises(ConfigError, match="posterior.kind is vmf.*standard_normal.*uniform_sphere"):
        _lstm_vae(posterior=VMF)
    with pytest.raises(ConfigError, match="prior.kind is uniform_sphere.*=gaussian.*vmf"):
        _lstm_vae(prior=UNIFORM)
    with pytest.raises(ConfigError, match="model.latent is 1"):
        build_density(VMF, lambda outputs, axes: Affine(lambda key: {}, lambda p, h: h), (1, 1))
    family = FAMILIES["sri"]
    short_run = family.tiny(dict(dec=9))
    with pytest.raises(ConfigError, match="short-run inference would leave that sphere"):
        family.build(type(short_run)(short_run.decoder, prior=UNIFORM))


def test_free_bits_have_no_dimensions_to_act_on():
    model = _lstm_vae(prior=UNIFORM, posterior=VMF)
    assert not per_dimension(model.post, model.prior)
    with pytest.raises(ConfigError, match="per latent dimension"):
        check_kl(Objective(free_bits="dim_masked", free_bits_nats=0.1), model)
    check_kl(Objective(), model)
