"""A linear-Gaussian model trained with a wrong prior: the fitted one makes its likelihood exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Generator, Posterior, Sampler, Side, TextVAE, example_keys
from jvae.errors import ConfigError, InputError
from jvae.fitted import FITTED, attach, fit, join
from jvae.inference import scoring
from jvae.latent import mixture
from jvae.latent.gaussian import LOG_2PI, noise
from jvae.latent.iw_bound import score_batch
from jvae.latent.priors import standard_normal
from jvae.latent.short_run import ChainConfig

COUNT, WIDTH, VARIANCE = 4_000, 3, 0.5


def unused(*args, **kwargs):
    raise AssertionError("not part of this toy")


class Toy(NamedTuple):
    """x = M z + noise, z from a Gaussian far from N(0, I), posteriors exact for that one."""

    model: TextVAE
    params: dict
    batch: Batch
    exact_e: np.ndarray  # -log p of each x


def log_normal(left_ed, factor_dd):
    noise_de = jax.scipy.linalg.solve_triangular(factor_dd, left_ed.T, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor_dd)))
    return -0.5 * jnp.sum(noise_de**2 + LOG_2PI, axis=0) - log_det


@pytest.fixture(scope="module")
def toy() -> Toy:
    rng = np.random.default_rng(0)
    matrix = np.eye(WIDTH) + 0.4 * rng.normal(size=(WIDTH, WIDTH))
    mean_d = np.array([2.0, -1.0, 0.5])
    factor_dd = np.tril(rng.normal(size=(WIDTH, WIDTH))) + np.diag([0.6, 1.2, 0.9])
    prior_dd = factor_dd @ factor_dd.T
    z_nd = mean_d + rng.normal(size=(COUNT, WIDTH)) @ factor_dd.T
    x_nd = z_nd @ matrix.T + VARIANCE**0.5 * rng.normal(size=(COUNT, WIDTH))
    inverse_dd = np.linalg.inv(prior_dd)
    cov_dd = np.linalg.inv(inverse_dd + matrix.T @ matrix / VARIANCE)
    post_nd = (x_nd @ matrix / VARIANCE + mean_d @ inverse_dd) @ cov_dd
    joint_dd = matrix @ prior_dd @ matrix.T + VARIANCE * np.eye(WIDTH)
    left_nd = x_nd - mean_d @ matrix.T
    exact_e = 0.5 * np.sum(left_nd * np.linalg.solve(joint_dd, left_nd.T).T, axis=1)
    exact_e += 0.5 * np.linalg.slogdet(2 * np.pi * joint_dd)[1]

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        return params["mean"][batch.id_e]

    def sample(params, post_ed, key_ke):
        noise_ked = noise(key_ke, (WIDTH,))
        return (post_ed[None] + noise_ked @ params["factor"].T)[:, :, None]

    def log_prob(params, post_ed, z_egz):
        return log_normal(z_egz[:, 0] - post_ed, params["factor"])

    def log_lik(params, ctx, z_egz):
        scored_bt, x_ed = ctx
        left_ed = x_ed - z_egz[:, 0] @ params["matrix"].T
        nats_e = -0.5 * jnp.sum(left_ed**2 / VARIANCE + np.log(2 * np.pi * VARIANCE), axis=1)
        return jnp.where(scored_bt, nats_e[:, None], 0.0)

    gen = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=lambda params, batch, drop=None, *, cond=None: (
            batch.scored_bt,
            params["x"][batch.id_e],
        ),
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=unused,
        step=unused,
        expand=unused,
        reorder=unused,
    )
    post = Posterior(encode, sample, log_prob, lambda params, post_ed: post_ed[:, None])
    shape = (1, WIDTH)
    model = TextVAE(lambda key: {}, {}, standard_normal(shape), gen, post, shape)
    params = {
        "x": x_nd,
        "mean": post_nd,
        "factor": np.linalg.cholesky(cov_dd),
        "matrix": matrix,
    }
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    ones = np.ones((COUNT, 2), np.int32)
    side = Side(ones, ones, np.tile(np.arange(2, dtype=np.int32), (COUNT, 1)))
    batch = Batch(None, side, None, side.position_bt == 1, np.arange(COUNT, dtype=np.int32))
    return Toy(model, params, batch, exact_e)


@pytest.fixture(scope="module")
def gaussian(toy):
    z_ekgz = scoring.draws(
        toy.model.gen, toy.model.post, 4, toy.params, toy.batch, jax.random.key(0)
    )
    z_ngz = np.asarray(z_ekgz).reshape(-1, 1, WIDTH)
    return fit("gaussian", FITTED["gaussian"].options(), z_ngz, jax.random.key(0))


@pytest.mark.slow
def test_the_fitted_prior_reaches_the_exact_likelihood(toy, gaussian):
    def nll(model, params):
        scores = score_batch(model, 4, 4)(params, toy.batch, jax.random.key(1))
        return float(np.mean(np.asarray(scores.nll_e, np.float64) - toy.exact_e)), scores

    wrong, _ = nll(toy.model, toy.params)
    right, scores = nll(attach(toy.model, gaussian), join(toy.params, gaussian))
    assert wrong > 0.5 and abs(right) < 0.05
    # Exact posteriors: every weight is the same, so K does not matter.
    np.testing.assert_allclose(scores.bound_e[1].mean(), scores.nll_e.mean(), atol=0.05)
    assert float(scores.ess_e.mean()) > 3.9


@pytest.mark.slow
def test_a_sampler_draws_from_the_new_prior_in_its_bounds(toy, gaussian):
    post, prior = toy.model.post, toy.model.prior
    proposal = mixture.with_prior(prior, post)
    sampler = Sampler(unused, post, post, proposal, None, ChainConfig(chains=64, chunk=64))
    model = toy.model._replace(post=post._replace(sampler=sampler))
    attached, params = attach(model, gaussian), join(toy.params, gaussian)
    assert attached.metric_post is post and attached.proposal is not proposal
    q, z_egz = toy.params["mean"][:5], np.ones((5, 1, WIDTH), np.float32)
    want = np.logaddexp(
        post.log_prob(params, q, z_egz), gaussian.prior().log_prob(params, z_egz)
    ) - np.log(2)
    np.testing.assert_allclose(attached.proposal.log_prob(params, q, z_egz, None), want, rtol=1e-5)
    assert attach(model, gaussian) == attached  # programs are kept by these functions
    # The baseline, too: chains replaced by draws of the prior that the KL is measured against.
    key_e = example_keys(jax.random.key(2), toy.batch.id_e)
    baseline = attached.post.sampler.baseline.encode(params, toy.batch, key_e=key_e)
    draws = np.asarray(gaussian.prior().sample(params, jax.random.split(jax.random.key(3), 4_000)))
    np.testing.assert_allclose(
        np.mean(baseline.mean_egz, axis=0), draws.mean(axis=0), atol=0.1 * draws.std()
    )


def test_a_prior_of_another_shape_is_refused(toy, gaussian):
    with pytest.raises(
        InputError, match=r"latents of shape \(1, 3\); those of this model have shape"
    ):
        attach(toy.model._replace(latent_shape=(2, 3)), gaussian)
    with pytest.raises(ConfigError, match="a language model has no latent"):
        attach(toy.model._replace(latent_shape=(0, 0)), gaussian)
