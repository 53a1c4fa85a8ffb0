"""Work on parameters alone leaves the loop, and nothing about the results changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr

from jvae.api import DecodeState
from jvae.decode.hoist import hoisted

LAYERS, WIDTH, VOCAB = 2, 8, 12


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = dict(w=(LAYERS, WIDTH, WIDTH), scale=(LAYERS, WIDTH), table=(VOCAB, WIDTH))
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)


def step(params, state, token_e):
    """Casts weights, keeps a scale in float32, and has a nested `jit` and a constant."""
    x = jnp.take(params["table"], token_e, axis=0).astype(jnp.bfloat16) + state.cache
    for layer in range(LAYERS):
        product = jax.jit(lambda x, w: x @ w.astype(x.dtype))
        x = product(x, params["w"][layer])
        x = (x.astype(jnp.float32) * params["scale"][layer][None]).astype(x.dtype)
        x = jax.nn.silu(x) + jnp.arange(WIDTH, dtype=x.dtype)[None]
    logits = jnp.einsum("ed,vd->ev", x, params["table"].astype(x.dtype))
    return logits.astype(jnp.float32), DecodeState(x, state.position_e + 1)


def loop(params, token_e, early: bool):
    state = DecodeState(jnp.zeros((*token_e.shape, WIDTH), jnp.bfloat16), token_e * 0)
    hoisted_step = hoisted(step, params, state, token_e) if early else None

    def body(carry, _):
        state, token_e = carry
        logits, state = (
            hoisted_step(state, token_e) if hoisted_step else step(params, state, token_e)
        )
        token_e = jnp.argmax(logits, axis=1).astype(token_e.dtype)
        return (state, token_e), (token_e, logits)

    return jax.lax.scan(body, (state, token_e), length=5)


def test_results_are_the_same_bits(params):
    token_e = jnp.array([3, 1, 4], jnp.int32)
    run = jax.jit(loop, static_argnums=2)
    for got, want in zip(
        *(jax.tree.leaves(run(params, token_e, early)) for early in (True, False)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_no_weight_is_cast_in_the_loop(params):
    """Casts left there are of states; the table stays in float32 too, for rows of the input."""

    def casts(early):
        traced = jax.make_jaxpr(lambda p, t: loop(p, t, early))(params, jnp.zeros(3, jnp.int32))
        scan = next(eqn for eqn in traced.eqns if eqn.primitive.name == "scan")
        return {
            eqn.invars[0].aval.shape
            for eqn in _equations(scan.params["jaxpr"])
            if eqn.primitive.name == "convert_element_type"
        }

    weights = {(WIDTH, WIDTH), (VOCAB, WIDTH)}
    assert weights <= casts(early=False)
    assert not weights & casts(early=True)


def _equations(traced):
    for equation in traced.jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if isinstance(inner, ClosedJaxpr):
                yield from _equations(inner)


def test_nothing_grows(params):
    """A result larger than its operands, here a wider dtype, stays where it is used."""

    def widening(params, state, token_e):
        return params["w"].astype(jnp.float32).sum() + token_e, state

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    state = DecodeState(jnp.zeros(3), jnp.zeros(3, jnp.int32))

    def run(half, token_e):
        return hoisted(widening, half, state, token_e)(state, token_e)[0]

    traced = jax.make_jaxpr(run)(half, jnp.zeros(3))
    names = [eqn.primitive.name for eqn in traced.eqns]
    assert names.index("optimization_barrier") < names.index("convert_element_type")
