"""Building blocks against NumPy, and the statistics of dropout and initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.backbones.gpt2 import Gpt2Config
from jvae.nn.layers import (
    Embedding,
    Projection,
    accum_dtype,
    dropout,
    fold_key,
    split_key,
)
from jvae.nn.norms import LayerNorm


def applied(module: nn.Module, params, x):
    return jax.jit(lambda params, x: module.apply({"params": params}, x))(params, x)


def test_projection_contracts_its_input_axes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    params = dict(kernel=rng.normal(size=(3, 4, 6)), bias=rng.normal(size=6))
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    module = Projection((6,), ("heads", "head"), ("embed",))
    want = np.einsum("btnh,nhd->btd", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(applied(module, params, x), want, rtol=1e-5, atol=1e-5)
    without = Projection((6,), ("heads", "head"), ("embed",), use_bias=False)
    got = applied(without, {"kernel": params["kernel"]}, x)
    np.testing.assert_allclose(got, want - params["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_reduces_in_float32(dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(100.0, 3.0, (2, 3, 64)), dtype)  # far from 0: bfloat16 sums fail
    params = dict(scale=rng.normal(size=64), bias=rng.normal(size=64))
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    got = applied(LayerNorm(1e-5), params, x)
    assert got.dtype == dtype
    h = np.asarray(x, np.float64)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    want = h * params["scale"] + params["bias"]
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, atol=1e-4 if dtype == jnp.float32 else 0.05
    )


def test_layer_norm_of_equal_features_is_its_bias():
    params = dict(scale=np.ones(4, np.float32), bias=np.arange(4, dtype=np.float32))
    total = lambda x: jnp.sum(LayerNorm(1e-5).apply({"params": params}, x) ** 2)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(total))(jnp.full((1, 4), 7.0))
    np.testing.assert_allclose(value, 14.0, rtol=1e-6)
    assert np.all(np.isfinite(grad))


def test_embedding_looks_up_in_the_compute_dtype():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    got = applied(Embedding(4, 3, "vocab", "bfloat16"), {"table": table}, np.array([[3, 0]]))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), table[[[3, 0]]])


def test_initial_values():
    module = Projection((50, 40), ("embed",), ("heads", "head"))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 30), jnp.bfloat16))["params"]
    assert params["kernel"].names == ("embed", "heads", "head")
    assert params["bias"].names == ("heads", "head")
    kernel, bias = nn.unbox(params)["kernel"], nn.unbox(params)["bias"]
    assert kernel.shape == (30, 50, 40)
    assert kernel.dtype == bias.dtype == jnp.float32
    assert np.all(np.asarray(bias) == 0)
    np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.02)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_share_and_the_mean(rate, impl):
    x = jnp.full((200, 501), 3.0)
    run = jax.jit(lambda key: dropout(key, rate, x))
    got = np.asarray(run(jax.random.key(0, impl=impl)))
    kept = got != 0
    # Five standard deviations of a mean of 100,000 draws.
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / got.size)
    # A mask of 16 random bits per element keeps a multiple of 2 ** -16, and divides by it.
    np.testing.assert_allclose(got[kept], 3.0 / (1 - rate), rtol=1e-6 if impl != "rbg" else 1e-5)
    np.testing.assert_allclose(got.mean(), 3.0, rtol=0.02)
    pairs = (kept[:, 1:] & kept[:, :-1]).mean()  # neighbours may share a random word
    assert abs(pairs - (1 - rate) ** 2) < 5 * np.sqrt(rate * (1 - rate) / got.size)


def test_dropout_is_a_function_of_its_key():
    x = jnp.ones((100,))
    run = jax.jit(lambda key: dropout(key, 0.5, x))
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert np.any(np.asarray(run(jax.random.key(1)) != run(jax.random.key(2))))


def test_dropout_without_key_or_rate_is_the_identity():
    x = jnp.ones((3,))
    assert dropout(None, 0.5, x) is x
    assert dropout(jax.random.key(0), 0.0, x) is x


def test_keys_of_named_uses_differ_and_none_stays_none():
    assert split_key(None, 3) == [None, None, None]
    assert fold_key(None, 1) is None
    key = jax.random.key(0)
    # Not both from one key: folding i in gives the same key as part i of a split.
    for keys in (split_key(key, 3), [fold_key(key, i) for i in range(3)]):
        assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 3


def test_reductions_are_at_least_float32():
    assert accum_dtype(jnp.bfloat16) == jnp.float32
    assert accum_dtype(jnp.float32) == jnp.float32
    assert accum_dtype(jnp.float64) == jnp.float64


def test_sizes_of_a_stack():
    config = Gpt2Config(2, 16, 4, 32, vocab=129, positions=8)
    assert config.head == 4
    assert config.vocab_padded == 256
    assert Gpt2Config(2, 16, 4, 32, vocab=128, positions=8).vocab_padded == 128
    with pytest.raises(ValueError, match="width 16 does not divide into 3 heads"):
        _ = Gpt2Config(2, 16, 3, 32, vocab=9, positions=8).head
