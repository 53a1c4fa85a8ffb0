"""The KL of any posterior to any prior: in closed form or of the draw, one number everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

from jvae.api import Posterior, Prior, TextVAE
from jvae.errors import ConfigError
from jvae.evals.latent import collect_posteriors
from jvae.latent.elbo import measure
from jvae.latent.gaussian import (
    DiagonalGaussian,
    Gaussian,
    kl_standard,
    log_density,
    noise,
    reparameterize,
)
from jvae.latent.iw_bound import score_batch
from jvae.latent.kl import kl, per_dimension
from jvae.training.objectives import Objective, batch_loss, check_kl

KEY = jax.random.key(5)
WIDTH = 2


def _encode(params, batch, drop=None, *, cond=None, key_e=None):
    """The same Gaussian for every sentence."""
    shape = (batch.id_e.shape[0], 1, WIDTH)
    return Gaussian(*(jnp.broadcast_to(params[name], shape) for name in ("mean", "log_var")))


GAUSSIAN = Posterior(
    encode=_encode,
    sample=lambda params, post, key_ke: reparameterize(post, noise(key_ke, (1, WIDTH))),
    log_prob=lambda params, post, z_egz: log_density(post, z_egz),
    mean=lambda params, post: post.mean_egz,
    form=DiagonalGaussian(),
)


def _iid(log_prob) -> Prior:
    """A prior without a closed form, whose dimensions are alike and have a scale of their own."""

    def log_prob_e(params, z_egz, cond=None):
        scale_egz = jnp.exp(params["prior"]["log_scale"])[None, None]
        return jnp.sum(log_prob(z_egz / scale_egz) - jnp.log(scale_egz), axis=(1, 2))

    return Prior(None, log_prob_e)


HEAVY = {
    "student": _iid(lambda z: stats.t.logpdf(z, 3.0)),
    "logistic": _iid(stats.logistic.logpdf),
}


@pytest.fixture(scope="module")
def case(toys):
    """(prior, posterior) -> a model; its parameters, and a batch of that many sentences."""

    def make(prior, post=GAUSSIAN, count=4):
        toy = toys.linear(count=count, same=True)
        params = toy.params | {
            "mean": jnp.asarray([0.8, -0.3]),
            "log_var": jnp.asarray([-1.0, 0.4]),
            "prior": {"log_scale": jnp.asarray([0.2, -0.1])},
        }
        model = TextVAE(None, None, prior or toy.prior, toy.gen, post, (1, WIDTH))
        return model, params, toy.batch

    return make


def test_draws_and_closed_form_agree_in_training_and_in_evaluation(case):
    closed, params, batch = case(None, count=4_000)
    drawn = closed._replace(prior=closed.prior._replace(form=None))
    exact_egz = kl_standard(_encode(params, batch))

    def everywhere(model):
        terms = jax.jit(lambda p: measure(model, p, batch, KEY))(params)
        posts = collect_posteriors(model, params, [batch], KEY)
        scores = score_batch(model, 1)(params, batch, KEY)
        return terms, posts, scores

    terms, posts, scores = everywhere(closed)
    np.testing.assert_allclose(terms.kl_egz, exact_egz, rtol=1e-6)
    np.testing.assert_allclose(posts.kl_egz, exact_egz, rtol=1e-6)
    exact = float(jnp.sum(exact_egz[0]))
    for nats_e in (terms.kl_e, posts.kl_e, scores.kl_e):
        np.testing.assert_allclose(nats_e, exact, rtol=1e-6)

    terms, posts, scores = everywhere(drawn)
    assert terms.kl_egz is None and posts.kl_egz is None
    for nats_e in (np.asarray(x, np.float64) for x in (terms.kl_e, posts.kl_e, scores.kl_e)):
        error = np.std(nats_e) / np.sqrt(len(nats_e))
        assert abs(np.mean(nats_e) - exact) < 3 * error
        assert 3 * error < 0.1 * exact  # the bound above says something
        np.testing.assert_allclose(nats_e, terms.kl_e, rtol=1e-4, atol=1e-5)  # same draws


@pytest.mark.parametrize("name", HEAVY)
def test_training_and_evaluation_have_one_bound_for_any_prior(case, name):
    model, params, batch = case(HEAVY[name])
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)

        @jax.jit
        def train(params):
            terms = measure(model, params, batch, KEY)
            return batch_loss(Objective(), terms, 1.0)[0], terms

        loss, terms = train(params)
        scores = score_batch(model, 1)(params, batch, KEY)
        neg_elbo_e = np.asarray(terms.nll_e + terms.kl_e)
        assert neg_elbo_e.dtype == np.float64 and terms.kl_egz is None
        np.testing.assert_allclose(neg_elbo_e, scores.rec_e + scores.kl_e, rtol=1e-6)
        np.testing.assert_allclose(neg_elbo_e, scores.nll_e, rtol=1e-6)  # K = 1
        np.testing.assert_allclose(loss, np.mean(scores.rec_e + scores.kl_e), rtol=1e-6)
        assert np.all(np.abs(scores.kl_e) > 1e-2)


@pytest.mark.parametrize("name", HEAVY)
def test_a_prior_of_its_own_parameters_is_trained(case, name):
    """By -log p(z) of the draws; gradient against differences."""
    model, params, batch = case(HEAVY[name])
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)

        @jax.jit
        def loss(scale_z):
            changed = params | {"prior": {"log_scale": scale_z}}
            return batch_loss(Objective(), measure(model, changed, batch, KEY), 1.0)[0]

        log_scale = params["prior"]["log_scale"]
        grad_z = jax.grad(loss)(log_scale)
        for z in range(WIDTH):
            step = 1e-5 * jnp.eye(WIDTH)[z]
            slope = (loss(log_scale + step) - loss(log_scale - step)) / 2e-5
            assert abs(slope) > 1e-2
            np.testing.assert_allclose(grad_z[z], slope, rtol=1e-6)


def test_a_posterior_without_a_density_declares_its_kl_or_has_none(case):
    blind = GAUSSIAN._replace(log_prob=None)
    model, params, batch = case(HEAVY["student"], blind)
    with pytest.raises(ValueError, match=r"no density.*`has_kl=False`"):
        measure(model, params, batch, KEY)

    point = model._replace(post=blind._replace(has_kl=False, form=None))
    terms = jax.jit(lambda p: measure(point, p, batch, KEY))(params)
    np.testing.assert_array_equal(terms.kl_e, np.zeros(4))
    np.testing.assert_array_equal(terms.kl_egz, np.zeros((4, 1, WIDTH)))
    assert np.all(np.asarray(terms.nll_e) != 0)

    # The closed form of a pair needs no density.
    closed, params, batch = case(None, blind)
    q = _encode(params, batch)
    actual = kl(params, closed.post, q, q.mean_egz, closed.prior)
    np.testing.assert_allclose(actual.nats_egz, kl_standard(q), rtol=1e-6)
    # What is declared 0 is 0 whatever the pair.
    actual = kl(params, closed.post._replace(has_kl=False), q, q.mean_egz, closed.prior)
    np.testing.assert_array_equal(actual.nats_egz, np.zeros((4, 1, WIDTH)))


@pytest.mark.parametrize(
    "choices, named",
    [
        (dict(free_bits="dim_max", free_bits_nats=0.1), "free_bits=dim_max"),
        (dict(free_bits="mean_sum", free_bits_nats=0.1), "free_bits=mean_sum"),
        (dict(kl_reduce="group_mean"), "kl_reduce=group_mean"),
    ],
)
def test_free_bits_need_a_closed_form(case, choices, named):
    closed, _, _ = case(None)
    drawn, objective = closed._replace(prior=HEAVY["student"]), Objective(**choices)
    assert per_dimension(closed.post, closed.prior)
    assert not per_dimension(drawn.post, drawn.prior)
    with pytest.raises(ConfigError, match=f"{named}.*no closed form"):
        check_kl(objective, drawn)
    check_kl(Objective(), drawn)
    check_kl(objective, closed)
    check_kl(objective, drawn._replace(post=GAUSSIAN._replace(has_kl=False)))
