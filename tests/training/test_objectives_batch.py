"""Objectives whose terms are means over the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae.api import Terms
from jvae.errors import ConfigError
from jvae.training.objectives import Objective, batch_loss
from jvae.validation.validate import validate

NLL = jnp.array([6.0, 10.0, 99.0])
SCORED = jnp.array([2, 6, 50])
VALID = jnp.array([True, True, False])
KL = jnp.array([[[0.5, 1.5]], [[1.0, 3.0]], [[50.0, 50.0]]])


def loss(kl_egz=KL, beta=1.0, **choices):
    terms = Terms(NLL, jnp.sum(kl_egz, axis=(1, 2)), kl_egz, {}, SCORED, VALID)
    return batch_loss(Objective(**choices), terms, beta)[0]


def test_the_mean_over_tokens_is_that_of_the_batch():
    assert float(loss(beta=0.0)) == pytest.approx(16 / 2)
    assert float(loss(beta=0.0, rec_reduce="token_mean")) == pytest.approx(16 / 8)
    assert float(loss(beta=0.0, rec_reduce="token_mean_end")) == pytest.approx(16 / 10)


def test_below_the_floor_on_the_batch_mean_the_kl_has_no_gradient():
    rec = 8.0
    above = dict(free_bits="mean_sum", free_bits_nats=1.4)  # 2.8 nats under a mean of 3
    below = dict(free_bits="mean_sum", free_bits_nats=1.6)
    assert float(loss(**above)) == pytest.approx(rec + 3.0)
    assert float(loss(beta=0.5, **below)) == pytest.approx(rec + 0.5 * 3.2)
    grad = jax.grad(lambda kl: loss(kl, **above))(KL)
    np.testing.assert_allclose(grad[:, 0, 0], [0.5, 0.5, 0.0])
    assert not np.any(jax.grad(lambda kl: loss(kl, **below))(KL))


def test_a_shared_threshold_is_cut_by_the_dimensions():
    want = loss(free_bits="dim_masked", free_bits_nats=1.2)
    shared = loss(free_bits="dim_masked_share", free_bits_nats=2.4)
    assert float(shared) == pytest.approx(float(want))
    assert float(want) == pytest.approx(8.0 + (1.5 + 3.0) / 2)


def test_two_divisions_by_the_length_are_refused():
    config = configs.load("lm:tiny").unlock()
    config.objective.update(rec_reduce="token_mean", length_weighted=True)
    with pytest.raises(ConfigError, match="divide"):
        validate(config)
