"""Work of programs whose counts are known."""

import jax
import jax.numpy as jnp

from jvae import counting


def program(w, x):
    def body(x, _):
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(body, x, length=7)
    return jnp.einsum("ik,jk->ij", x, x)


def test_matrix_products_are_counted_as_often_as_they_run():
    traced = jax.make_jaxpr(program)(jnp.ones((5, 5)), jnp.ones((3, 5)))
    assert counting.matmul_flops(traced) == 7 * 2 * 3 * 5 * 5 + 2 * 3 * 3 * 5


def test_operands_are_counted_in_their_own_dtype():
    traced = jax.make_jaxpr(program)(jnp.ones((5, 5), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16))
    assert counting.matmul_bytes(traced) == 2 * (7 * (25 + 15) + 15 + 15)


def test_of_a_conditional_the_dearest_branch_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    traced = jax.make_jaxpr(either)(True, jnp.ones((4, 4)))
    assert counting.matmul_flops(traced) == 2 * 2 * 4**3
