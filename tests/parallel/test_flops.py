"""Work of programs whose counts are known."""

import jax
import jax.numpy as jnp

from jvae.nn import cache_kernel
from jvae.parallel import flops


def program(w, x):
    def body(x, _):
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(body, x, length=7)
    return jnp.einsum("ik,jk->ij", x, x)


def test_matrix_products_are_counted_as_often_as_they_run():
    def program(w, x):
        def body(x, _):
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(body, x, length=7)
        x = jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)
        return jnp.einsum("ik,jk->ij", x, x)

    traced = jax.make_jaxpr(program)(jnp.ones((5, 5)), jnp.ones((3, 5)))
    once = 2 * 3 * 5 * 5
    assert flops.matmul_flops(traced) == 7 * once + once + 2 * 3 * 3 * 5
    assert flops.matmul_flops(traced, turns=4) == 7 * once + 4 * once + 2 * 3 * 3 * 5


def test_what_is_computed_again_counts_again():
    """Forward, forward again and two products backward, against three without."""

    def loss(w, x, remat):
        layer = lambda x: jnp.tanh(x @ w)  # noqa: E731
        return jnp.sum((jax.checkpoint(layer) if remat else layer)(x))

    w, x = jnp.ones((5, 5)), jnp.ones((3, 5))
    plain, again = (
        flops.matmul_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)), static_argnums=2)(w, x, remat))
        for remat in (False, True)
    )
    assert (plain, again) == (3 * 2 * 3 * 5 * 5, 4 * 2 * 3 * 5 * 5)


def test_operands_are_counted_in_their_own_dtype():
    traced = jax.make_jaxpr(program)(jnp.ones((5, 5), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16))
    assert flops.matmul_bytes(traced) == 2 * (7 * (25 + 15) + 15 + 15)


def test_of_a_conditional_the_dearest_branch_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    traced = jax.make_jaxpr(either)(True, jnp.ones((4, 4)))
    assert flops.matmul_flops(traced) == 2 * 2 * 4**3


def test_a_program_of_every_device_counts_on_all_of_them():
    rows = jax.sharding.PartitionSpec("data")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(lambda x: x @ x.T @ x, mesh=mesh, in_specs=rows, out_specs=rows)
    traced = jax.make_jaxpr(mapped)(jnp.ones((8, 3)))
    assert flops.matmul_flops(traced) == 4 * 2 * (2 * 2 * 2 * 3)


def test_declared_bytes_of_a_kernel_in_a_loop():
    cache = jax.ShapeDtypeStruct((4, 2, 34, 8), jnp.bfloat16)
    token = jax.ShapeDtypeStruct((4, 2, 8), jnp.bfloat16)
    place, visible = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((4, 34), bool)

    def steps(q, keys, values, place, visible):
        return jax.lax.fori_loop(
            *(0, 3),
            lambda _, so_far: cache_kernel.step(q, q, q, *so_far[1:], place, visible, scale=1.0),
            (q, keys, values),
        )

    traced = jax.make_jaxpr(steps)(token, cache, cache, place, visible)
    moved = 2 * 4 * 2 * 34 * 8 + 2 * 3 * 2 * 4 * 2 * 8 + 4 * 4 * 34  # half caches, tokens, visible
    assert flops.declared_bytes(traced) == {"cache_step": moved}
