"""The checks of shapes that all tests run with."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jvae import api
from tests.tools import shapes


def test_arguments_that_disagree_on_an_axis_are_an_error():
    with pytest.raises(TypeCheckError, match="valid_e"):
        api.mean_valid(jnp.zeros(3), jnp.ones(4, bool))


def test_a_place_in_the_source_has_one_checker():
    def made():
        def function(x: float) -> float:
            return x

        return function

    one, other = shapes.check(made()), shapes.check(made())
    assert one is other and one(1) == 1
