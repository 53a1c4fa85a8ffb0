"""Chunked log-probabilities against the plain form: values, every kind of derivative, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from jvae.nn.xent import logits, mask_padded_vocab, token_log_prob

VOCAB, ROWS, WIDTH = 13, 16, 4  # three rows of the table are padding
SHAPE = (2, 3)


def draw(scale: float = 1.0):
    rng = np.random.default_rng(0)
    hidden, toward = rng.normal(size=(2, *SHAPE, WIDTH)).astype(np.float32)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    target = rng.integers(0, VOCAB, SHAPE)
    target[0, 0] = VOCAB - 1
    return jax.tree.map(jnp.asarray, (scale * hidden, table, target, toward))


def derivatives(chunk: int):
    """(hidden, table, target, toward) -> values and all derivatives of a weighted sum of them."""

    @jax.jit
    def run(hidden, table, target, toward):
        def values(hidden, table):
            return token_log_prob(hidden, table, target, VOCAB, chunk)

        weight = jnp.arange(1.0, 7.0).reshape(SHAPE)
        total = lambda h, t: jnp.sum(weight * values(h, t))  # noqa: E731
        by_hidden = jax.grad(total)
        return dict(
            values=values(hidden, table),
            grads=jax.grad(total, argnums=(0, 1))(hidden, table),
            hidden_only=by_hidden(hidden, table),
            forward=jax.jvp(lambda h: values(h, table), (hidden,), (toward,))[1],
            forward_over_reverse=jax.jvp(lambda h: by_hidden(h, table), (hidden,), (toward,))[1],
            reverse_over_reverse=jax.grad(
                lambda h, t: jnp.vdot(by_hidden(h, t), toward), argnums=(0, 1)
            )(hidden, table),
        )

    return run


@pytest.fixture(scope="module")
def plain():
    return derivatives(ROWS)


@pytest.fixture(scope="module", params=[3, 5])
def chunked(request):
    """Neither chunk divides the table; 3 leaves a chunk that is padding alone."""
    return derivatives(request.param)


# Logits of several hundred nats carry rounding errors of that size into every exponential.
@pytest.mark.parametrize("scale, tolerance", [(1.0, 1e-6), (1e-3, 1e-6), (200.0, 3e-4)])
def test_chunked_equals_plain(chunked, plain, scale, tolerance):
    got, want = chunked(*draw(scale)), plain(*draw(scale))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for name, expected in want.items():
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected), strict=True):
            atol = tolerance * max(1.0, float(jnp.max(jnp.abs(b))))
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol, err_msg=name)


def test_plain_equals_numpy(plain):
    hidden, table, target, _ = (np.asarray(x) for x in draw())
    scores = hidden.astype(np.float64) @ table[:VOCAB].T
    log_p = scores - np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))
    want = np.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(plain(*draw())["values"], want, rtol=1e-5)


def test_padding_rows_get_no_gradient(chunked, plain):
    for run in (chunked, plain):
        table_grad = run(*draw())["grads"][1]
        assert np.all(np.asarray(table_grad[VOCAB:]) == 0)
        assert np.all(np.any(np.asarray(table_grad[:VOCAB]) != 0, axis=1))


def test_extreme_padding_rows_take_no_part(chunked):
    hidden, table, target, toward = draw()
    loud = table.at[VOCAB:].set(1e4)
    np.testing.assert_array_equal(
        chunked(hidden, loud, target, toward)["values"],
        chunked(hidden, table, target, toward)["values"],
    )


def equations(program):
    """Every equation of a program, inner ones included."""
    for equation in (program.jaxpr if isinstance(program, ClosedJaxpr) else program).eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from equations(part)


def gradient_program(chunk: int, argnums):
    """Gradient for 15 positions, width 4, 64 words: 960 logits, 256 numbers in the table."""
    hidden, table = jnp.zeros((3, 5, 4)), jnp.zeros((64, 4))
    target = jnp.zeros((3, 5), jnp.int32)
    total = lambda h, t: jnp.sum(token_log_prob(h, t, target, 64, chunk))  # noqa: E731
    return list(equations(jax.make_jaxpr(jax.grad(total, argnums=argnums))(hidden, table)))


def largest(program) -> int:
    return max(v.aval.size for equation in program for v in equation.outvars)


def test_logits_of_a_batch_never_exist_at_once():
    assert largest(gradient_program(64, (0, 1))) >= 960
    assert largest(gradient_program(8, (0, 1))) <= 256


def test_gradient_of_hidden_alone_forms_none_of_the_table():
    def table_products(argnums) -> int:
        products = (e for e in gradient_program(8, argnums) if e.primitive.name == "dot_general")
        return sum(e.outvars[0].aval.shape in ((8, 4), (4, 8)) for e in products)

    assert table_products((0, 1)) > 0
    assert table_products(0) == 0


@pytest.mark.parametrize("chunk", [5, ROWS])
def test_blocks_of_columns_equal_the_table(chunk):
    hidden, table, target, _ = draw()
    split = (table[:, :3], table[:, 3:])

    def total(hidden, table):
        return jnp.sum(token_log_prob(hidden, table, target, VOCAB, chunk))

    ours, theirs = (
        jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, whole)
        for whole in (split, table)
    )
    (value, (by_hidden, by_blocks)), (expected, (by_state, by_table)) = ours, theirs
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_hidden, by_state, atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate(by_blocks, axis=1), by_table, atol=1e-5)


def test_a_block_that_is_not_trained_has_no_products_of_its_gradient():
    """The features of a latent train around a frozen output table."""
    hidden, frozen, features = jnp.zeros((3, 5, 6)), jnp.zeros((64, 4)), jnp.zeros((64, 2))
    target = jnp.zeros((3, 5), jnp.int32)

    def total(frozen, features):
        return jnp.sum(token_log_prob(hidden, (frozen, features), target, 64, 8))

    def products(argnums, width) -> int:
        program = equations(jax.make_jaxpr(jax.grad(total, argnums=argnums))(frozen, features))
        shapes = [e.outvars[0].aval.shape for e in program if e.primitive.name == "dot_general"]
        return sum(shape in ((8, width), (width, 8)) for shape in shapes)

    assert products((0, 1), 4) > 0 and products(1, 2) > 0
    assert products(1, 4) == 0


def test_gradients_in_16_bits_multiply_in_16_bits_and_add_up_in_32():
    """Products with float32 operands take GPUs twice as long, 16-bit scatters much longer."""
    hidden, table = jnp.zeros((3, 5, 4), jnp.bfloat16), jnp.zeros((64, 4))
    target = jnp.zeros((3, 5), jnp.int32)
    total = lambda h, t: jnp.sum(token_log_prob(h, t, target, 64, 8))  # noqa: E731
    program = list(equations(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, table)))
    scores = [
        e for e in program if e.primitive.name == "dot_general" and e.outvars[0].aval.ndim > 1
    ]
    widest = [e for e in scores if max(v.aval.size for v in e.invars) >= 3 * 5 * 8]
    assert len(widest) == 2  # gradients of states and of the table, from those of the scores
    assert {v.aval.dtype for e in widest for v in e.invars} == {jnp.dtype(jnp.bfloat16)}
    scatters = [e for e in program if e.primitive.name == "scatter-add"]
    assert scatters and all(e.outvars[0].aval.dtype == jnp.float32 for e in scatters)


def test_logits_hide_padding_and_are_float32():
    hidden, table, _, _ = draw()
    got = jax.jit(lambda h, t: logits(h, t, VOCAB))(hidden.astype(jnp.bfloat16), table)
    assert got.dtype == jnp.float32
    assert got.shape == (*SHAPE, ROWS)
    assert np.all(np.asarray(got[..., VOCAB:]) == -np.inf)
    want = np.asarray(hidden) @ np.asarray(table[:VOCAB]).T
    np.testing.assert_allclose(got[..., :VOCAB], want, atol=0.1)
    np.testing.assert_array_equal(
        mask_padded_vocab(jnp.zeros((1, 3)), 2), np.array([[0, 0, -np.inf]])
    )


def test_bfloat16_states_give_float32_nats():
    hidden, table, target, _ = draw()
    run = jax.jit(lambda h: token_log_prob(h, table, target, VOCAB, 5))
    got = run(hidden.astype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, run(hidden), atol=0.1)
