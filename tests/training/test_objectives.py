"""Weights of the terms: floors, lengths, empty slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Terms
from jvae.training.objectives import FLOORS, Objective, batch_loss, per_sentence

E, G, Z = 5, 2, 3
VALID = np.array([True, False, True, True, False])
FLOOR = 0.5


@pytest.fixture(scope="module")
def terms() -> Terms:
    rng = np.random.default_rng(0)
    kl = rng.gamma(1.0, 1.0, (E, G, Z)).astype(np.float32)
    kl[0, 0, :2] = 0.1, 2.0  # on either side of the floor, whatever the draw
    return Terms(
        nll_e=jnp.asarray(rng.gamma(5.0, 4.0, E), jnp.float32),
        kl_e=jnp.asarray(kl.sum(axis=(1, 2))),
        kl_egz=jnp.asarray(kl),
        aux={"bow": jnp.asarray(rng.gamma(2.0, 1.0, E), jnp.float32)},
        scored_e=jnp.asarray([4, 0, 7, 1, 0]),
        valid_e=jnp.asarray(VALID),
    )


def spoiled(terms: Terms) -> Terms:
    """The terms with huge values at empty slots."""
    junk = lambda x: jnp.where(VALID.reshape(-1, *[1] * (x.ndim - 1)), x, 1e30)  # noqa: E731
    junked = {name: junk(getattr(terms, name)) for name in ("nll_e", "kl_e", "kl_egz")}
    return terms._replace(**junked, aux=jax.tree.map(junk, terms.aux))


def make(**choices) -> Objective:
    return Objective(**({"aux_weight": {"bow": 0.3}} | choices))


CHOICES = [
    dict(),
    dict(free_bits="dim_masked", free_bits_nats=FLOOR),
    dict(free_bits="dim_max", free_bits_nats=FLOOR),
    dict(length_weighted=True),
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_masked_loss_equals_compacted_loss(terms, choices):
    compacted = jax.tree.map(lambda x: x[VALID], terms)
    loss = jax.jit(
        lambda t: jax.value_and_grad(
            lambda t: batch_loss(make(**choices), t, 0.7)[0], allow_int=True
        )(t)
    )
    got, got_grads = loss(spoiled(terms))
    want, want_grads = loss(compacted)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for name in ("nll_e", "kl_e", "kl_egz"):
        grad = np.asarray(getattr(got_grads, name))
        np.testing.assert_allclose(grad[VALID], getattr(want_grads, name), rtol=1e-6)
        assert np.all(grad[~VALID] == 0)


def test_loss_is_the_weighted_sum(terms):
    got, parts = batch_loss(make(), terms, 0.7)
    nll, kl, bow = (
        np.asarray(x, np.float64) for x in (terms.nll_e, terms.kl_egz, terms.aux["bow"])
    )
    want = nll + 0.7 * kl.sum(axis=(1, 2)) + 0.3 * bow
    np.testing.assert_allclose(parts.total_e, want, rtol=1e-6)
    np.testing.assert_allclose(got, want[VALID].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "free_bits, of_dimension",
    [
        ("none", lambda kl: kl),
        ("dim_masked", lambda kl: kl if kl > FLOOR else 0.0),
        ("dim_max", lambda kl: max(kl, FLOOR)),
    ],
)
def test_floors_equal_their_definition(terms, free_bits, of_dimension):
    loss = per_sentence(make(free_bits=free_bits, free_bits_nats=FLOOR), terms, 1.0)
    for e in range(E):
        kl = sum(of_dimension(float(x)) for x in np.ravel(terms.kl_egz[e]))
        want = float(terms.nll_e[e]) + kl + 0.3 * float(terms.aux["bow"][e])
        np.testing.assert_allclose(loss.total_e[e], want, rtol=1e-5)
        # What is reported is the plain divergence.
        np.testing.assert_allclose(loss.kl_e[e], np.sum(terms.kl_egz[e]), rtol=1e-6)


def floor_gradient(free_bits: str, kl_egz):
    return jax.jit(jax.grad(lambda kl: jnp.sum(FLOORS[free_bits](kl, FLOOR))))(kl_egz)


def test_masked_and_maximum_floor_have_one_gradient(terms):
    masked = floor_gradient("dim_masked", terms.kl_egz)
    np.testing.assert_array_equal(masked, floor_gradient("dim_max", terms.kl_egz))
    below = np.asarray(terms.kl_egz) < FLOOR
    assert below.any() and not below.all()
    np.testing.assert_array_equal(np.asarray(masked), np.where(below, 0.0, 1.0))


def test_masked_floor_drops_a_dimension_at_the_floor():
    at = jnp.full((1, 1, 1), FLOOR)
    assert FLOORS["dim_masked"](at, FLOOR)[0] == 0
    assert FLOORS["dim_max"](at, FLOOR)[0] == FLOOR
    assert floor_gradient("dim_masked", at)[0, 0, 0] == 0


def test_length_weighting_counts_start_and_end_and_leaves_the_kl(terms):
    loss = per_sentence(make(length_weighted=True), terms, 0.7)
    n_e = np.array([5, 1, 8, 2, 1])  # scored tokens and the start id
    kl_e = np.asarray(terms.kl_egz).sum(axis=(1, 2))
    want = terms.nll_e / n_e + 0.7 * kl_e + 0.3 * terms.aux["bow"]
    np.testing.assert_allclose(loss.total_e, want, rtol=1e-6)


def test_a_fixed_length_divides_the_reconstruction_alone(terms):
    loss = per_sentence(make(rec_length=256), terms, 0.7)
    want = terms.nll_e / 256 + 0.7 * loss.kl_e + 0.3 * terms.aux["bow"]
    np.testing.assert_allclose(loss.total_e, want, rtol=1e-6)


def test_thirty_two_collapsed_dimensions_cost_their_floor_and_pull_nowhere():
    """Released T5-VAE, lambda 0.5."""
    kl_egz = jnp.zeros((1, 1, 32))
    assert FLOORS["dim_max"](kl_egz, FLOOR)[0] == 16.0
    assert np.all(floor_gradient("dim_max", kl_egz) == 0)


def test_without_closed_form_the_kl_of_the_draw_is_weighed(terms):
    drawn_e = jnp.asarray([3.0, 9.0, -0.5, 1.0, 9.0])
    terms = terms._replace(kl_e=drawn_e, kl_egz=None, aux={})
    loss = per_sentence(Objective(), terms, 0.7)
    np.testing.assert_allclose(loss.total_e, terms.nll_e + 0.7 * drawn_e, rtol=1e-6)
    np.testing.assert_array_equal(loss.kl_e, drawn_e)
    grad_e = jax.grad(lambda kl: batch_loss(Objective(), terms._replace(kl_e=kl), 0.7)[0])(drawn_e)
    np.testing.assert_allclose(grad_e, 0.7 * VALID / VALID.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "choices",
    [dict(free_bits="dim_max", free_bits_nats=FLOOR), dict(kl_reduce="group_mean")],
    ids=str,
)
def test_free_bits_per_dimension_need_a_kl_per_dimension(terms, choices):
    assert make(**choices).per_dimension and not make().per_dimension
    with pytest.raises(ValueError, match="KL of each dimension"):
        per_sentence(make(**choices), terms._replace(kl_egz=None), 0.7)


def test_no_sentence_costs_nothing(terms):
    none = spoiled(terms)._replace(valid_e=jnp.zeros(E, bool))
    assert batch_loss(make(), none, 1.0)[0] == 0


def test_terms_without_a_weight_are_refused(terms):
    with pytest.raises(KeyError, match="bow"):
        per_sentence(Objective(), terms, 1.0)
