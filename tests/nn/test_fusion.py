"""The low-rank tensor product against loops over ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Side
from jvae.backbones.gpt2 import Gpt2Config
from jvae.injections import fusion
from jvae.models.common import unboxed
from jvae.models.generator import laid_out

LAYERS, GROUPS, FIRST, RANK, LATENT = 3, 2, 1, 4, 5
CONFIG = Gpt2Config(LAYERS, 8, 2, 16, 11, 9)
SEGMENT = jnp.array([[1, 1, 2, 0], [2, 1, 1, 0]])  # rows of two slots
SIDE = Side(SEGMENT, SEGMENT, SEGMENT)


@pytest.fixture(scope="module")
def case():
    """Parameters away from their initial values, latents of four examples, values of two rows."""
    keys = jax.random.split(jax.random.key(0), 3)
    draw = np.random.default_rng(0).normal
    shapes = jax.eval_shape(
        unboxed(lambda key: fusion.init(CONFIG, GROUPS, LATENT, RANK, key))[0], keys[0]
    )
    params = jax.tree.map(lambda a: jnp.asarray(0.4 * draw(size=a.shape), jnp.float32), shapes)
    z_egz = jax.random.normal(keys[1], (4, GROUPS, LATENT))
    return params, z_egz, jax.random.normal(keys[2], (2, 4, 2, 4))


def _fused(order, params, z_egz, value_btnh, side):
    how = fusion.Fusion(CONFIG, FIRST, GROUPS, order)
    lay = (lambda value: value[:, None]) if side is None else laid_out(side)

    @jax.jit
    def run(params, z_egz, value_btnh):
        inputs = fusion.inputs(how, params, fusion.latent_factor(how, params, z_egz))
        fuse_layer = lambda layer: fusion.fuse(value_btnh, layer, lay)  # noqa: E731
        return jax.lax.map(fuse_layer, inputs)

    return np.asarray(run(params, z_egz, value_btnh))


def _by_hand(order, params, group, z_z, value_d):
    p = jax.tree.map(lambda a: np.asarray(a[group], np.float64), params)
    project = lambda part, x, r: (  # noqa: E731
        x @ p[part]["kernel"][:, r].reshape(len(x), -1)
        + (p[part]["constant"] + p[part]["bias"])[r].reshape(-1)
    )
    text = [project("value", value_d, r) for r in range(RANK)]
    latent = [project("latent", z_z, r) for r in range(RANK)]
    if order == "sum_then_product":
        return sum(text) * sum(latent)
    return sum(a * b for a, b in zip(text, latent, strict=True))


@pytest.mark.parametrize("order", fusion.ORDERS)
def test_every_token_meets_the_latent_of_its_own_example(case, order):
    params, z_egz, value_btnh = case
    got = _fused(order, params, z_egz, value_btnh, SIDE)
    np.testing.assert_array_equal(got[0], value_btnh)  # a layer without a latent
    for b in range(2):
        for t in range(3):
            e = 2 * b + int(SEGMENT[b, t]) - 1
            value_d = np.asarray(value_btnh[b, t]).reshape(-1)
            for group in range(GROUPS):
                want = _by_hand(order, params, group, np.asarray(z_egz[e, group]), value_d)
                np.testing.assert_allclose(
                    got[FIRST + group, b, t].reshape(-1), want, rtol=1e-4, atol=1e-5
                )


def test_summing_first_makes_the_rank_one(case):
    params, z_egz, value_btnh = case
    axis = dict(kernel=2, constant=1, bias=1)
    single = {
        part: {k: jnp.sum(v, axis=axis[k], keepdims=True) for k, v in leaves.items()}
        for part, leaves in params.items()
    }
    rows = z_egz[:2]  # one example per row
    many, one, other = (
        _fused(order, p, rows, value_btnh, None)
        for order, p in (
            ("sum_then_product", params),
            ("sum_then_product", single),
            ("product_then_sum", params),
        )
    )
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(many - other)) > 0.1
