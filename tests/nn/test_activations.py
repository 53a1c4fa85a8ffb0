"""Activations and their derivatives against the functions they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.nn.activations import ACTIVATIONS

PLAIN = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def test_every_activation_is_tested():
    assert set(PLAIN) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_derivatives(name):
    def derivatives(function):
        def run(x, toward):
            slope = lambda x: jax.grad(lambda x: jnp.sum(function(x)))(x)  # noqa: E731
            total = lambda x: jnp.sum(slope(x) * toward)  # noqa: E731
            forward = jax.jvp(function, (x,), (toward,))
            return function(x), slope(x), forward, jax.grad(total)(x)

        return jax.tree.leaves(jax.jit(run)(x, toward))

    with jax.enable_x64(True):
        x = jnp.linspace(-12.0, 12.0, 49)
        toward = jnp.cos(x)
        got, want = derivatives(ACTIVATIONS[name]), derivatives(PLAIN[name])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_16_bits_are_rounded_once(name):
    """Computing in float32 keeps values and slopes within one rounding of exact ones."""
    x = jnp.linspace(-4.0, 4.0, 801).astype(jnp.bfloat16)
    exact = PLAIN[name](x.astype(jnp.float32))
    slope = jax.grad(lambda x: jnp.sum(PLAIN[name](x)))(x.astype(jnp.float32))
    got = ACTIVATIONS[name](x)
    got_slope = jax.grad(lambda x: jnp.sum(ACTIVATIONS[name](x).astype(jnp.float32)))(x)
    for a, b in ((got, exact), (got_slope, slope)):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-6)
