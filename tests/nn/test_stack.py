"""A stack of layers is the loop over its layers, whatever the compute does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.nn.layers import Projection
from jvae.nn.stack import init_stack, layer_range, run_stack

LAYERS, WIDTH = 3, 4


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(LAYERS, WIDTH)), jnp.float32),
    }


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, WIDTH)), jnp.float32)


@pytest.fixture(scope="module")
def per_layer():
    return jnp.asarray([1.0, -2.0, 0.5])


def layer(params, x, gain, key):
    x = jnp.tanh(x @ params["kernel"] + params["bias"][None])
    if key is not None:  # a number made of the key stands for a mask: far faster to compile
        x = x * (1.0 + jax.random.key_data(key)[0] % 7)
    return x if gain is None else gain * x, jnp.sum(x)


def slow(params, x, per_layer=None, keys=(None,) * LAYERS):
    outputs = []
    for i in range(len(params["bias"])):
        gain = None if per_layer is None else per_layer[i]
        x, output = layer(jax.tree.map(lambda p, i=i: p[i], params), x, gain, keys[i])
        outputs.append(output)
    return x, jnp.stack(outputs)


def both(run):
    """Value and gradient of a scalar made of everything a stack returns."""

    def total(params, x, *rest):
        y, outputs = run(params, x, *rest)
        return jnp.sum(y**2) + jnp.vdot(outputs, jnp.arange(1.0, len(outputs) + 1)), (y, outputs)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def looped(params, x, per_layer):
    """The loop, with one key per layer, split from one."""
    keys = jax.random.split(jax.random.key(2), LAYERS)
    return both(lambda p, x, xs: slow(p, x, xs, keys))(params, x, per_layer)


@pytest.mark.parametrize(
    "remat, unroll", [("none", 1), ("none", 99), ("dots", 1), ("dots", 2), ("full", 1)]
)
def test_stack_equals_a_loop(params, x, per_layer, looped, remat, unroll):
    run = both(
        lambda p, x, xs: run_stack(
            layer, p, x, xs, drop=jax.random.key(2), remat=remat, unroll=unroll
        )
    )
    assert_same(run(params, x, per_layer), looped)


def test_stack_without_inputs_or_dropout(params, x):
    got = both(lambda p, x: run_stack(layer, p, x))(params, x)
    assert_same(got, both(slow)(params, x))


def test_layer_range_is_a_part_of_the_stack(params, x):
    @jax.jit
    def in_parts(params, x):
        x, first = run_stack(layer, layer_range(params, 0, 1), x)
        x, last = run_stack(layer, layer_range(params, 1, LAYERS), x)
        return x, jnp.concatenate([first, last])

    assert_same(in_parts(params, x), jax.jit(slow)(params, x))


def test_unknown_remat_is_refused(params, x):
    with pytest.raises(ValueError, match="'some'.*none, dots, full"):
        run_stack(layer, params, x, remat="some")


def test_layers_are_drawn_apart_and_named():
    module = Projection((WIDTH,), ("embed",), ("mlp",))
    boxed = jax.jit(
        lambda key: init_stack(
            lambda layer_key: module.init(layer_key, jnp.zeros((1, WIDTH)))["params"], key, LAYERS
        )
    )(jax.random.key(0))
    assert boxed["kernel"].names == ("layers", "embed", "mlp")
    assert boxed["bias"].names == ("layers", "mlp")
    kernel = np.asarray(nn.unbox(boxed)["kernel"])
    assert kernel.shape == (LAYERS, WIDTH, WIDTH)
    assert np.all(np.abs(kernel[1:] - kernel[:1]) > 0)
