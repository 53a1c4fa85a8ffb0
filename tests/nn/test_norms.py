"""Norms whose parameters are stored in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.nn.norms import LayerNorm, RmsNorm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [LayerNorm(1e-5), RmsNorm(1e-6), RmsNorm(1e-6, plus_one=True)])
def test_stored_in_bfloat16_they_compute_as_in_float32(norm, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 64)), dtype)
    start = norm.init(jax.random.key(0), x)
    stored = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.bfloat16), start
    )
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    np.testing.assert_array_equal(norm.apply(stored, x), norm.apply(wide, x))
