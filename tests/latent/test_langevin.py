"""The kernel and its loop: exact moments, one gradient per step, one trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.config import dataclass_from
from jvae.errors import ConfigError
from jvae.latent import langevin, short_run
from jvae.latent.short_run import ChainConfig


def _kernel(log_joint=lambda z: -0.5 * jnp.sum(z**2, axis=(1, 2)), size=0.5, temperature=1.0):
    return langevin.langevin(log_joint, step_size=lambda k: size, temperature=temperature)


def test_step_is_the_published_update_and_keeps_what_the_next_needs():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 2)), jnp.float32)
    kernel = _kernel(temperature=0.3)
    key_e = example_keys(jax.random.key(0), jnp.arange(3))

    @jax.jit
    def go(z):
        state = kernel.init(z)
        return state, *kernel.step(key_e, state, 0)

    before, after, info = go(z)
    expected = z - 0.5 * 0.25 * z + 0.3 * 0.5 * info.noise_egz
    np.testing.assert_allclose(after.z_egz, expected, rtol=1e-6)
    np.testing.assert_allclose(after.score_egz, -after.z_egz, rtol=1e-6)
    np.testing.assert_allclose(info.gain_e, after.log_joint_e - before.log_joint_e, rtol=1e-6)
    np.testing.assert_allclose(info.score_norm_e, np.linalg.norm(z[:, 0], axis=1), rtol=1e-6)


def test_loop_equals_steps_with_their_noise_and_traces_the_target_once():
    traces = []

    def log_joint(z_egz):
        traces.append(1)
        return -jnp.sum(z_egz**4, axis=(1, 2))

    kernel = _kernel(log_joint, size=0.2)
    key_e = example_keys(jax.random.key(1), jnp.arange(2))
    z = jnp.ones((2, 1, 2)) * 0.5
    noise_at = short_run.noise_of(key_e, (1, 2))
    end, path = jax.jit(lambda z: langevin.run(lambda k: kernel, z, 4, noise_at, path=True))(z)
    assert len(traces) == 1

    @jax.jit
    def steps(z):
        state, points = kernel.init(z), []
        for k in range(4):
            points.append(state.z_egz)
            state, info = kernel.step(langevin.step_keys(key_e, k), state, k)
        return state.z_egz, jnp.stack(points)

    by_step, points = steps(z)
    np.testing.assert_allclose(end, by_step, rtol=1e-6)
    np.testing.assert_allclose(path, points, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_small_steps_reach_the_moments_of_the_exact_posterior(toys, temperature):
    """Chains of one sentence: at temperature 1 its posterior, at 0 its mode."""
    toy = toys.linear(count=3_000, same=True)
    cfg = ChainConfig(steps=300, schedule="constant", step_size=0.2, temperature=temperature)
    post = short_run.attach(toy.gen, toy.prior, cfg)
    key_e = example_keys(jax.random.key(2), jnp.arange(3_000))
    z = jax.jit(lambda p: post.encode(p, toy.batch, key_e=key_e))(toy.params)[:, 0]
    z = np.asarray(z, np.float64)
    if temperature:
        error = np.sqrt(np.diag(toy.cov_zz) / len(z))
        assert np.all(np.abs(z.mean(0) - toy.mean_ez[0]) < 4 * error)
        np.testing.assert_allclose(np.cov(z.T), toy.cov_zz, rtol=0.12, atol=0.012)
    else:
        np.testing.assert_allclose(z, np.tile(toy.mean_ez[:1], (len(z), 1)), atol=1e-4)


def test_prior_weight_scales_the_prior_alone(toys):
    toy = toys.linear()
    ctx = toy.gen.prepare(toy.params, toy.batch)
    z = jnp.asarray(np.random.default_rng(3).normal(size=(3, 1, 2)), jnp.float32)
    half, whole, none = (
        short_run.log_joint(toy.gen, toy.prior, toy.params, ctx, toy.batch, prior_weight=w)(z)
        for w in (0.5, 1.0, 0.0)
    )
    np.testing.assert_allclose(half, 0.5 * (whole + none), rtol=1e-5)
    np.testing.assert_allclose(whole - none, toy.prior.log_prob(toy.params, z), rtol=1e-4)


def test_published_step_sizes_and_their_continuation():
    sizes = langevin.official_sizes(22)
    head = [0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1]
    np.testing.assert_allclose(sizes, head + [0.05] * 14, rtol=1e-6)
    np.testing.assert_allclose(np.logaddexp(0, langevin.raw_sizes(sizes)), sizes, rtol=1e-5)


def test_config_refuses_what_it_cannot_run():
    for bad in (dict(steps=-1), dict(schedule="cosine"), dict(step_size=0.0), dict(chains=5)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            dataclass_from(ChainConfig, bad, "model.chain")
