"""Log-determinants of short runs by two routes, and the step sizes that they teach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.latent import langevin, short_run, volume
from jvae.latent.short_run import ChainConfig

STEPS = 3


def _as_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


@pytest.mark.slow
@pytest.mark.fast_on("0.7")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_routes_agree_on_an_lstm_under_shared_noise(toys, temperature):
    model, params = toys.lstm(latent=4, dtype="float64")
    single = toys.sentences().single
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        z = jnp.asarray(rng.normal(size=(3, 1, 4)))
        noise = jnp.asarray(rng.normal(size=(STEPS, 3, 1, 4)))

        @jax.jit
        def both(params):
            chain = short_run.prepare(
                model.gen,
                model.prior,
                ChainConfig(steps=STEPS, temperature=temperature),
                params,
                single,
            )
            args = (chain.kernel_at, z, STEPS, lambda k: noise[k])
            return volume.per_step(*args), volume.whole_map(*args)

        steps, whole = both(_as_float64(params))
        assert steps.log_det_e.dtype == jnp.float64
        assert np.all(np.abs(steps.log_det_e) > 0.1)
        np.testing.assert_allclose(steps.log_det_e, whole.log_det_e, rtol=0, atol=1e-10)
        np.testing.assert_allclose(steps.end_egz, whole.end_egz, rtol=0, atol=1e-12)


def test_log_determinant_of_a_linear_model_is_exact(toys):
    toy = toys.linear()
    cfg = ChainConfig(steps=5)
    key_e = example_keys(jax.random.key(0), toy.batch.id_e)

    @jax.jit
    def go(params):
        chain = short_run.prepare(toy.gen, toy.prior, cfg, params, toy.batch)
        args = (chain.start(key_e), 5, short_run.noise_of(key_e, (1, 2)))
        return volume.per_step(chain.kernel_at, *args), chain.end(key_e)[0]

    done, end = go(toy.params)
    precision = np.linalg.inv(toy.cov_zz)
    factors = [np.eye(2) - s**2 / 2 * precision for s in langevin.official_sizes(5)]
    expected = sum(np.linalg.slogdet(a)[1] for a in factors)
    np.testing.assert_allclose(done.log_det_e, expected, rtol=1e-4)
    np.testing.assert_allclose(done.end_egz, end, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradient_of_the_bound_in_the_sizes_is_that_of_differences(toys):
    model, params = toys.lstm(dtype="float64")
    single = toys.sentences().single
    bound = volume.short_run_bound(model.gen, model.prior, ChainConfig(temperature=0.5))
    with jax.enable_x64(True):
        raw = jnp.asarray(np.log(np.expm1([0.7, 0.4])))
        both = jax.jit(
            lambda p, raw: jax.value_and_grad(bound, 1)(p, raw, single, jax.random.key(0))
        )
        params = _as_float64(params)
        _, grad = both(params, raw)
        for k in range(2):
            step = 1e-5 * np.eye(2)[k]
            up, down = both(params, raw + step)[0], both(params, raw - step)[0]
            np.testing.assert_allclose(grad[k], (up - down) / 2e-5, rtol=1e-6, atol=1e-8)


def test_learned_sizes_raise_the_bound_towards_the_best_single_step(toys):
    """One step of a standard normal target's chain has the exact optimum of its bound at s = 0."""
    toy = toys.linear(count=64)
    cfg = ChainConfig(steps=2, schedule="learned", temperature=0.0)
    bound = volume.short_run_bound(toy.gen, toy.prior, cfg)
    learn = volume.learn_sizes(toy.gen, toy.prior, cfg, updates=60, lr=5e-2)
    raw = jnp.asarray(langevin.raw_sizes(np.array([0.2, 0.2])))

    @jax.jit
    def go(params):
        actual, path = learn(params, raw, toy.batch, jax.random.key(0))
        key = jax.random.key(9)
        return (
            actual,
            path,
            bound(params, raw, toy.batch, key),
            bound(params, actual, toy.batch, key),
        )

    learned, path, before, after = go(toy.params)
    assert path.shape == (60,)
    assert after > before + 0.2
    assert np.all(np.isfinite(learned))


def test_learned_schedule_reads_its_parameters(toys):
    cfg = ChainConfig(steps=3, schedule="learned")
    start = short_run.init_sizes(cfg)
    np.testing.assert_allclose(
        short_run.sizes(cfg, {"posterior": start}), short_run.initial_sizes(cfg), rtol=1e-5
    )
    assert short_run.init_sizes(ChainConfig()) == {}
