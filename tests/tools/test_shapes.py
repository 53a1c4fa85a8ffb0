"""The checks of shapes that all tests run with."""

import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Array, Float, TypeCheckError

from jvae import api
from jvae.nn import xent
from tests.tools import shapes


def test_arguments_that_disagree_on_an_axis_are_an_error():
    assert api.mean_valid(np.zeros(3), jnp.ones(3, bool)) == 0.0
    with pytest.raises(TypeCheckError, match="valid_e"):
        api.mean_valid(jnp.zeros(3), jnp.ones(4, bool))


def test_a_place_in_the_source_has_one_checker():
    def build():
        def function(x: Float[Array, "b"] | None, name: str) -> tuple[Array, int]:
            return x, name

        return function

    one, other = shapes.check(build()), shapes.check(build())
    x = jnp.zeros(3)
    assert one is other and one(x, 1) == (x, 1)
    with pytest.raises(BeartypeCallHintViolation, match="x='x'"):
        one("x", "name")


def test_swapped_axes_are_an_error():
    hidden_btd, table_vd = jnp.zeros((3, 5, 4)), jnp.zeros((8, 4))
    with pytest.raises(TypeCheckError, match="target_bt"):
        xent.token_log_prob(hidden_btd, table_vd, jnp.zeros((5, 3), jnp.int32), 8, 8)


def test_a_wrong_dtype_is_an_error():
    with pytest.raises(TypeCheckError, match="valid_e"):
        api.mean_valid(jnp.zeros(3), jnp.ones(3, jnp.float32))
