"""The Triton kernel of cached attention, interpreted, against the plain form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.backbones import BACKBONES
from jvae.nn import cache as caches
from jvae.nn.cache import KvCache

EXAMPLES, SIZE = 3, 8
# Query heads, key heads, places, the new token's place, soft cap.
CASES = {
    "one-block": (2, 2, 20, 5, None),
    "shared-heads": (6, 2, 40, 33, None),
    "full": (2, 1, 33, 32, 5.0),
    "first": (2, 2, 8, 0, None),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_the_plain_form(name):
    """With hidden places among those in use, and places after them that must not be read."""
    heads, kv_heads, places, place, cap = CASES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = [(EXAMPLES, n, SIZE) for n in (heads, kv_heads, kv_heads)]
        token = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        cache = rng.normal(size=(2, EXAMPLES, kv_heads, places, SIZE))
        visible_em = rng.random((EXAMPLES, places)) < 0.7
        visible_em[:, place], visible_em[:, place + 1 :] = True, False

        def run(kernel, cache):
            how = dict(scale=0.3, cap=cap, kernel=kernel)
            here = (KvCache(*jnp.asarray(cache)), jnp.int32(place))
            return jax.jit(partial(caches.step, **how))(*here, *token, jnp.asarray(visible_em))

        expected, plain = run("xla", cache)
        cache[:, :, :, place:] = np.nan
        answer, new = run("triton", cache)
        assert answer.dtype == jnp.float64
        np.testing.assert_allclose(answer, expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(new, plain, strict=True):
            used = ours[:, :, : place + 1]
            np.testing.assert_array_equal(used, theirs[:, :, : place + 1])
            assert np.isnan(ours[:, :, place + 1 :]).all()


def test_a_bias_is_added_by_the_plain_form():
    """T5's relative positions: the kernel has none."""
    rng = np.random.default_rng(1)
    token = jnp.asarray(rng.normal(size=(3, 1, 2, SIZE)), jnp.float32)
    cache = KvCache(*jnp.asarray(rng.normal(size=(2, 1, 2, 4, SIZE)), jnp.float32))
    bias_enm = jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.float32)
    where = (cache, jnp.int32(3), *token, jnp.ones((1, 4), bool))
    (ours, _), (theirs, _) = (
        caches.step(*where, scale=1.0, bias_enm=bias_enm, kernel=kernel)
        for kernel in ("triton", "xla")
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_stack_decodes_alike_with_both_forms():
    """States of two steps after ragged prompts, in caches with room for more."""
    gpt2 = BACKBONES["gpt2"]
    states = {}
    with jax.enable_x64(True):
        for form in ("xla", "triton"):
            config = gpt2.tiny(16, attention=form, dtype="float64")
            stack = gpt2.stack(config, 8)
            own = jax.tree.map(lambda x: x.astype(jnp.float64), stack.init(jax.random.key(0)))
            x_etd = jax.random.normal(jax.random.key(1), (2, 3, stack.features), jnp.float64)
            _, kv = stack.prefill(own, x_etd, jnp.array([3, 1], jnp.int32), 8)
            assert isinstance(kv, caches.Caches)
            for more in range(2):
                position_e = jnp.array([3, 1], jnp.int32) + more
                if more == 0:
                    traced = jax.make_jaxpr(stack.step)(own, x_etd[:, more], kv, position_e)
                    assert ("pallas_call" in str(traced)) == (form == "triton")
                state_ed, kv = stack.step(own, x_etd[:, more], kv, position_e)
                states[form, more] = state_ed
    for more in range(2):
        difference = states["triton", more] - states["xla", more]
        assert np.abs(difference).max() < 1e-12 < np.abs(states["xla", more]).max()
