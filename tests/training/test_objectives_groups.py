"""Reductions of the KL over groups, against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Terms
from jvae.training.objectives import Objective, batch_loss, per_sentence

KL_EGZ = jnp.array([[[0.5, 0.25], [2.0, 0.0]], [[4.0, 1.0], [0.125, 0.125]]])
TERMS = Terms(
    nll_e=jnp.array([10.0, 20.0]),
    kl_e=jnp.sum(KL_EGZ, axis=(1, 2)),
    kl_egz=KL_EGZ,
    aux={"bow": jnp.array([1.0, 2.0])},
    scored_e=jnp.array([4, 9]),
    valid_e=jnp.array([True, True]),
)


@pytest.mark.parametrize(
    "floor, reduce, expected",
    [
        ("none", "sum", [2.75, 5.25]),
        ("none", "group_mean", [1.375, 2.625]),
        ("dim_masked", "sum", [2.0, 5.0]),
        ("dim_max", "sum", [2.0 + 3 * 0.5, 5.0 + 2 * 0.5]),
        ("group_max", "sum", [2.75, 5.5]),
        ("group_max", "group_mean", [1.375, 2.75]),
    ],
)
def test_floors_and_reductions(floor, reduce, expected):
    objective = Objective(
        free_bits=floor, free_bits_nats=0.5, kl_reduce=reduce, aux_weight={"bow": 0.2}
    )
    loss = per_sentence(objective, TERMS, 2.0)
    np.testing.assert_allclose(loss.total_e, [10.2, 20.4] + 2 * np.array(expected), rtol=1e-6)
    np.testing.assert_allclose(loss.kl_e, [2.75, 5.25])  # the plain one, whatever is optimised


def test_length_weighting_divides_the_reconstruction_alone():
    objective = Objective(length_weighted=True, aux_weight={"bow": 0.0})
    value, _ = batch_loss(objective, TERMS, 1.0)
    np.testing.assert_allclose(value, np.mean([10 / 5 + 2.75, 20 / 10 + 5.25]), rtol=1e-6)


def test_auxiliary_term_without_a_weight_is_an_error():
    with pytest.raises(KeyError, match="bow"):
        per_sentence(Objective(), TERMS, 1.0)
