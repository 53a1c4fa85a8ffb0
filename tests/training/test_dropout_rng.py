"""The generator of dropout masks: `train.dropout_rng`."""

import jax
import jax.numpy as jnp
import numpy as np

from jvae.nn.layers import dropout
from jvae.training.step import DEFAULT_RNG, with_rng


def test_keys_of_another_generator_follow_the_step():
    """The default changes nothing, so that runs resume with their masks."""
    first, second = jax.random.split(jax.random.key(0))
    assert with_rng(first, DEFAULT_RNG) is first
    keys = [with_rng(key, "rbg") for key in (first, first, second)]
    assert {str(jax.random.key_impl(key)) for key in keys} == {"rbg"}
    same, again, other = (np.asarray(jax.random.key_data(key)) for key in keys)
    assert np.array_equal(same, again) and not np.array_equal(same, other)


def test_masks_have_the_rate_and_are_independent():
    x, rate = jnp.ones((200, 500)), 0.1
    key = with_rng(jax.random.key(1), "rbg")
    one, two = (np.asarray(dropout(k, rate, x)) for k in jax.random.split(key))
    share = round((1 - rate) * 2**16) / 2**16  # 16 random bits per element
    np.testing.assert_allclose(np.unique(one), [0.0, 1 / share], rtol=1e-6)
    bound = 4 * (rate * (1 - rate) / x.size) ** 0.5
    assert abs(np.mean(one == 0) - rate) < bound
    assert abs(np.mean((one == 0) & (two == 0)) - rate**2) < bound
