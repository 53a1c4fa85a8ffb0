"""Densities and divergences against closed forms written out, and against Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.latent import null
from jvae.latent.densities import GAUSSIAN, Affine, amortized, build_density
from jvae.latent.gaussian import (
    Gaussian,
    kl_standard,
    log_density,
    log_standard,
    noise,
    reparameterize,
)
from jvae.latent.kl import kl
from jvae.latent.priors import standard_normal

E, G, Z = 3, 2, 4


@pytest.fixture(scope="module")
def q() -> Gaussian:
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(2, E, G, Z)).astype(np.float32)
    return Gaussian(jnp.asarray(mean), jnp.asarray(log_var))


@pytest.fixture(scope="module")
def draws(q):
    """20,000 draws (K, E, G, Z) of q, their log q and log p, made by one compiled function."""

    @jax.jit
    def make(q, key):
        z_kegz = reparameterize(q, noise(jax.random.split(key, (20_000, E)), (G, Z)))
        log_q_ke = jax.vmap(lambda z: log_density(q, z))(z_kegz)
        return z_kegz, log_q_ke, jax.vmap(log_standard)(z_kegz)

    return [np.asarray(x, np.float64) for x in make(q, jax.random.key(0))]


def test_densities_equal_the_formula(q, draws):
    z_kegz, log_q_ke, log_p_ke = draws
    mean, std = (
        np.asarray(q.mean_egz, np.float64),
        np.exp(np.asarray(q.log_var_egz, np.float64) / 2),
    )
    log_normal = -((z_kegz - mean) ** 2) / (2 * std**2) - np.log(std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_q_ke, log_normal.sum(axis=(2, 3)), rtol=1e-4, atol=1e-4)
    log_normal = -(z_kegz**2) / 2 - np.log(np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_p_ke, log_normal.sum(axis=(2, 3)), rtol=1e-4, atol=1e-4)


def test_densities_integrate_to_one():
    """One dimension on a grid."""
    post = Gaussian(jnp.full((4001, 1, 1), 0.7), jnp.full((4001, 1, 1), -1.3))
    grid = jnp.linspace(-15.0, 15.0, 4001)[:, None, None]
    for log_p in (log_density(post, grid), log_standard(grid)):
        total = np.sum(np.exp(np.asarray(log_p, np.float64))) * (30 / 4000)
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_kl_is_near_its_monte_carlo_value(q, draws):
    _, log_q_ke, log_p_ke = draws
    sampled_ke = log_q_ke - log_p_ke
    error_e = sampled_ke.std(axis=0) / np.sqrt(len(sampled_ke))
    kl_e = np.asarray(kl_standard(q)).sum(axis=(1, 2))
    assert np.all(np.abs(sampled_ke.mean(axis=0) - kl_e) < 5 * error_e)
    assert np.all(5 * error_e < 0.1 * kl_e)  # the bound above says something


def test_kl_is_positive_and_zero_only_at_the_prior(q):
    assert np.all(np.asarray(kl_standard(q)) > 0)
    prior = Gaussian(jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1)))
    value, grad = jax.value_and_grad(lambda q: jnp.sum(kl_standard(q)))(prior)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in grad)


def test_draws_have_the_moments_of_q(q, draws):
    z_kegz = draws[0]
    std = np.exp(np.asarray(q.log_var_egz) / 2)
    assert np.all(np.abs(z_kegz.mean(axis=0) - q.mean_egz) < 5 * std / np.sqrt(len(z_kegz)))
    np.testing.assert_allclose(z_kegz.std(axis=0), std, rtol=0.04)


def test_one_noise_per_key():
    key_e = jax.random.split(jax.random.key(1), 3)
    got = np.asarray(noise(key_e, (G, Z)))
    assert got.shape == (3, G, Z)
    np.testing.assert_array_equal(noise(key_e[1], (G, Z)), got[1])
    assert np.unique(got).size == got.size


def test_reparameterize_without_a_draw_axis(q):
    eps_egz = jnp.ones((E, G, Z))
    want = np.asarray(q.mean_egz) + np.exp(np.asarray(q.log_var_egz) / 2)
    np.testing.assert_allclose(reparameterize(q, eps_egz), want, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def flat(q) -> Gaussian:
    return Gaussian(q.mean_egz[:, :1], q.log_var_egz[:, :1])


def test_amortized_posterior(flat):
    seen = []

    def features(params, batch, drop):
        seen.append((params, batch, drop))
        return jnp.eye(E)[:, None]

    def head(outputs, axes):
        assert (outputs, axes) == ((2, Z), (None, "latent"))
        return Affine(lambda key: "kernel", lambda kernel, h_ed: jnp.tensordot(h_ed, kernel, 1))

    density = build_density(GAUSSIAN, head, (1, Z))
    assert density.init(jax.random.key(0)) == {"head": "kernel"}
    post, prior = amortized(density, features), standard_normal((1, Z))
    params = {"posterior": {"head": jnp.stack([x[:, 0] for x in flat], axis=1)}}
    drop, *key_e = jax.random.split(jax.random.key(0), 1 + E)
    q = post.encode(params, "batch", drop, cond="cond", key_e=jnp.stack(key_e))
    assert seen == [(params, "batch", drop)]
    np.testing.assert_allclose(q.mean_egz, flat.mean_egz, rtol=1e-6)
    np.testing.assert_allclose(q.log_var_egz, flat.log_var_egz, rtol=1e-6)
    assert post.mean(None, flat) is flat.mean_egz

    @jax.jit
    def run(key):
        key_ke = example_keys(key, jnp.arange(E), jnp.arange(5))
        eps_kegz = noise(key_ke, (1, Z))
        z_kegz = post.sample(None, flat, key_ke)
        actual = kl(None, post, flat, z_kegz[4], prior)
        got = z_kegz, actual.nats_egz, actual.nats_e, post.log_prob(None, flat, z_kegz[0])
        return got, (
            reparameterize(flat, eps_kegz),
            kl_standard(flat),
            jnp.sum(kl_standard(flat), axis=(1, 2)),
            log_density(flat, z_kegz[0]),
        )

    got, want = run(jax.random.key(2))
    assert got[0].shape == (5, E, 1, Z) and got[1].shape == (E, 1, Z)
    for value, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.max(np.abs(got[0][0] - got[0][1])) > 0.1


def test_standard_prior():
    key_e = jax.random.split(jax.random.key(3), 2000)
    prior = standard_normal((1, Z))
    z_egz = jax.jit(prior.sample)(None, key_e)
    assert z_egz.shape == (2000, 1, Z)
    np.testing.assert_allclose(np.mean(z_egz, axis=0), 0.0, atol=5 / np.sqrt(2000))
    np.testing.assert_allclose(np.std(z_egz, axis=0), 1.0, rtol=0.1)
    np.testing.assert_array_equal(prior.log_prob(None, z_egz), log_standard(z_egz))


def test_no_latent_weighs_nothing():
    key_ke = jax.random.split(jax.random.key(4), (2, 3))
    post, prior = null.POSTERIOR, null.PRIOR
    z_kegz = post.sample(None, None, key_ke)
    assert z_kegz.shape == (2, 3, *null.LATENT_SHAPE)
    assert prior.sample(None, key_ke[0]).shape == (3, *null.LATENT_SHAPE)
    actual = kl(None, post, None, z_kegz[0], prior)
    assert actual.nats_egz is not None and actual.nats_egz.shape == (3, *null.LATENT_SHAPE)
    log_q_e, log_p_e = post.log_prob(None, None, z_kegz[0]), prior.log_prob(None, z_kegz[0])
    for nats_e in (log_q_e, log_p_e, actual.nats_e):
        np.testing.assert_array_equal(nats_e, np.zeros(3))
