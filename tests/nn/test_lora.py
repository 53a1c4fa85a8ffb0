"""Low-rank additions: the pretrained function at the start, the merged kernels' function later."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.errors import ConfigError
from jvae.nn import lora
from jvae.nn.attention import MaskSpec
from jvae.nn.backbone import BACKBONES, stack_of
from jvae.nn.lora import Lora
from jvae.nn.points import Points
from jvae.tree import map_named, named_leaves

SEGMENT = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]], np.int32)
PLACE = np.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]], np.int32)
# Fused and separate projections, grouped heads, a fused gate, cross-attention.
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name != "llama"))
    for name in ("gpt2", "llama", "modernbert", "t5")
]


def config_of(name: str, **changes):
    more = dict(cross=True) if name == "t5" else {}
    return BACKBONES[name].tiny(11, **more, **changes)


def stacks(name: str, **changes):
    """The stack with additions and the one without."""
    plain = config_of(name)
    adapted = dataclasses.replace(plain, lora=Lora(**dict(rank=2, alpha=6.0) | changes))
    return stack_of(adapted, "model.decoder"), stack_of(plain, "model.decoder")


def abstract(stack):
    return jax.eval_shape(lambda: nn.unbox(stack.init(jax.random.key(0))))


def parameters(stack, trained: bool = True):
    """Random ones; B of the additions is zero before training."""

    def leaf(path: str, like):
        noise = 0.3 * np.random.default_rng(len(path)).normal(size=like.shape)
        value = noise + path.endswith("scale")
        return jnp.asarray(value * (trained or not path.endswith("/b")), like.dtype)

    return map_named(leaf, abstract(stack))


def reader(name: str, stack):
    """(parameters, dropout key) -> states of packed rows, compiled."""
    return jax.jit(functools.partial(read, name, stack))


def read(name: str, stack, params, drop=None):
    """States of packed rows; where there is cross-attention, it reads three states a row."""
    token = jnp.asarray(np.arange(10).reshape(2, 5), jnp.int32)
    points = Points()
    if name == "t5":
        state = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 16)), jnp.float32)
        points = Points(cross=stack.cross(params, state), cross_owner_bs=np.array([[1, 2, 1]]))
    mask = MaskSpec(jnp.asarray(SEGMENT), jnp.asarray(SEGMENT), True, jnp.asarray(PLACE))
    x = stack.embed(params, token, jnp.asarray(PLACE))
    return stack.rows(params, x, mask, points, drop)[0]


@pytest.mark.parametrize("name", NAMES)
def test_zero_additions_are_the_pretrained_stack_and_merged_ones_the_same_function(name):
    adapted, plain = stacks(name)
    with_pairs, without = reader(name, adapted), reader(name, plain)
    theirs = parameters(plain)
    before = without(theirs)
    np.testing.assert_array_equal(with_pairs(parameters(adapted, trained=False)), before)

    params = parameters(adapted)
    merged = lora.merged(params, adapted.config.lora)
    assert named_leaves(merged).keys() == named_leaves(theirs).keys()
    after = without(merged)
    np.testing.assert_allclose(with_pairs(params), after, rtol=2e-4, atol=2e-5)
    assert np.max(np.abs(after - before)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_stack_begins_with_zero_additions_and_all_else_as_without(name):
    adapted, plain = stacks(name)
    ours, theirs = (
        named_leaves(nn.unbox(stack.init(jax.random.key(0)))) for stack in (adapted, plain)
    )
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
    added = {path: leaf for path, leaf in ours.items() if path not in theirs}
    assert added and all("/lora/" in path for path in added)
    assert all(np.any(leaf) == path.endswith("/a") for path, leaf in added.items())


def pairs(name: str, targets: str) -> set[str]:
    stack, _ = stacks(name, targets=targets)
    paths = named_leaves(abstract(stack))
    return {path.removeprefix("layers/") for path in paths if path.endswith("/a")}


def test_targets_name_projections_whether_or_not_they_are_fused():
    assert pairs("gpt2", "attn/(q|v)$") == {"attn/qkv/lora/q/a", "attn/qkv/lora/v/a"}
    assert pairs("llama", "attn/(q|v)$") == {"attn/q/lora/a", "attn/kv/lora/v/a"}
    assert pairs("modernbert", "mlp/(up|down)") == {"mlp/both/lora/up/a", "mlp/down/lora/a"}
    assert len(pairs("t5", ".")) == 3 + 1 + 1 + 2 + 1 + 2  # qkv, out; q, kv, out; up and down


def test_targets_that_match_nothing_and_stacks_without_projections():
    with pytest.raises(ConfigError, match=r"model.decoder.lora.targets: 'query' matches no .*k"):
        jax.eval_shape(stacks("llama", targets="query")[0].init, jax.random.key(0))
    with pytest.raises(ConfigError, match="lstm, which cannot take low-rank additions"):
        stack_of(dataclasses.replace(config_of("lstm"), lora=Lora(rank=1)), "model.decoder")


def test_pairs_lie_on_a_mesh_like_the_axes_of_their_kernel():
    stack, _ = stacks("llama")
    boxed = jax.eval_shape(stack.init, jax.random.key(0))["layers"]["attn"]
    assert boxed["kv"]["lora"]["k"]["a"].names == ("layers", "embed", None)
    assert boxed["kv"]["lora"]["k"]["b"].names == ("layers", None, "heads", "head")
    assert boxed["out"]["lora"]["a"].names == ("layers", "heads", "head", None)
    assert boxed["out"]["lora"]["b"].names == ("layers", None, "embed")
    assert boxed["out"]["lora"]["a"].value.shape == (2, 6, 4, 2)


@pytest.mark.slow
def test_dropout_of_additions_is_that_of_the_key_and_off_without_one():
    # Of the layers themselves nothing is dropped here.
    config = config_of("llama", dropout=0.0, lora=Lora(rank=2, dropout=0.5))
    stack = stack_of(config, "model.decoder")
    params = parameters(stack)
    states = reader("llama", stack)
    one, again, other = (states(params, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.max(np.abs(one - other)) > 0.01 < np.max(np.abs(one - states(params)))
