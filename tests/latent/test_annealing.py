"""Schedules over epochs and the two ways to train the decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys, mean_valid, per_example
from jvae.config import dataclass_from
from jvae.errors import ConfigError
from jvae.latent import annealing, elbo, short_run
from jvae.latent.annealing import Annealing
from jvae.latent.short_run import ChainConfig
from jvae.training.objectives import Objective, batch_loss

CFG = ChainConfig(steps=2)


def test_published_temperatures_by_epoch():
    actual = [
        float(annealing.temperature_at(Annealing(), ChainConfig(), n)) for n in (1, 15, 16, 17, 18)
    ]
    np.testing.assert_allclose(actual, [0.05, 0.05, 0.10, 0.15, 0.20], rtol=1e-6)
    np.testing.assert_allclose(
        annealing.temperature_at(Annealing(), ChainConfig(), 60), 0.2, rtol=1e-6
    )


def test_prior_weight_rises_to_one_and_stays():
    plan = Annealing(epoch_steps=10, prior_start=0.1, prior_epochs=6)
    actual = np.array([float(annealing.prior_weight_at(plan, s)) for s in range(100)])
    assert actual[0] == pytest.approx(0.1) and np.all(np.diff(actual) >= 0)
    assert actual[59] < 1.0 and np.all(actual[60:] == 1.0)
    assert float(annealing.prior_weight_at(Annealing(epoch_steps=10), 0)) == 1.0


@pytest.fixture(scope="module")
def pieces(toys):
    """Losses and gradients of both modes, and what they are made of."""
    model, params = toys.lstm()
    packed, key, drop = toys.sentences().packed, jax.random.key(3), jax.random.key(4)
    leak = dataclasses.replace(Annealing(), param_grad="trajectory")

    def loss_of(plan, params):
        terms = annealing.measure(model.gen, model.prior, CFG, plan)(
            jnp.int32(0), params, packed, key, drop
        )
        return batch_loss(Objective(aux_weight={"trajectory": 1.0}), terms, 1.0)[0], terms

    def contract(params):
        chain = model._replace(post=short_run.attach(model.gen, model.prior, CFG))
        terms = elbo.measure(chain, params, packed, key, drop)
        return batch_loss(Objective(), terms, 1.0)[0], terms

    def nll_e(params, z_egz):
        ctx = model.gen.prepare(params, packed, drop)
        return -per_example(model.gen.log_lik(params, ctx, z_egz), packed)

    def along(params, path):
        return jnp.sum(jax.vmap(lambda z_egz: nll_e(params, z_egz))(path))

    @jax.jit
    def go(params):
        chain = short_run.prepare(model.gen, model.prior, CFG, params, packed, drop)
        end, path = chain.end(example_keys(jax.random.split(key)[0], packed.id_e), path=True)
        at_end = jax.grad(lambda p: mean_valid(nll_e(p, end), packed.valid_e))(params)
        (value, terms), final = jax.value_and_grad(lambda p: loss_of(Annealing(), p), has_aux=True)(
            params
        )
        both = jax.grad(lambda p: loss_of(leak, p)[0])(params)
        gradients = jax.grad(along)(params, path)
        return at_end, gradients, final, both, ((value, terms), contract(params))

    return go(params)


def _close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_final_mode_is_the_gradient_at_the_end_point_alone(pieces):
    at_end, _, final, _, _ = pieces
    _close(final, at_end)


@pytest.mark.slow
def test_what_training_measures_is_what_the_contract_does(pieces):
    """A KL of 0 in every dimension included, so that any objective can read it."""
    *_, ((value, terms), (want, contract)) = pieces
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert jax.tree.structure(terms) == jax.tree.structure(contract)
    for got, expected in zip(jax.tree.leaves(terms), jax.tree.leaves(contract), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
def test_trajectory_mode_adds_the_batch_sum_at_every_earlier_point(pieces):
    at_end, along, _, both, _ = pieces
    _close(both, jax.tree.map(jnp.add, at_end, along))


def test_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="param_grad='both'"):
        dataclass_from(Annealing, dict(param_grad="both"), "model.annealing")
