"""Splines: monotone, inverted exactly, slopes as differentiated."""

import jax
import jax.numpy as jnp
import numpy as np

from jvae.latent import spline

RAW = jnp.asarray(2 * np.random.default_rng(0).normal(size=(1, spline.raw_size(5))), jnp.float32)


def test_forward_backward_and_slope():
    x = jnp.linspace(-8.0, 8.0, 401)
    raw = jnp.broadcast_to(RAW, (401, RAW.shape[1]))
    y, log_slope = jax.jit(spline.forward)(x, raw)
    assert np.all(np.diff(y) > 0)
    np.testing.assert_allclose(jax.jit(spline.backward)(y, raw), x, atol=2e-4)
    at_each = lambda x: spline.forward(x, raw)[0]  # noqa: E731
    _, slope = jax.jit(lambda x: jax.jvp(at_each, (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_allclose(log_slope, np.log(slope), atol=1e-3)
    outside = np.abs(x) >= spline.BOUND
    np.testing.assert_array_equal(np.asarray(y)[outside], np.asarray(x)[outside])


def test_zeros_are_the_identity():
    x = jnp.linspace(-7.0, 7.0, 31)
    y, log_slope = jax.jit(spline.forward)(x, jnp.zeros((31, spline.raw_size(8))))
    np.testing.assert_allclose(y, x, atol=1e-5)
    np.testing.assert_allclose(log_slope, 0.0, atol=1e-5)
