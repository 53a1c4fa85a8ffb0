"""Priors that are learned with the model: mixtures, flows, posteriors of learned inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from jvae.api import Batch, Posterior, Side, TextVAE, example_keys
from jvae.errors import ConfigError
from jvae.evals.latent import collect_posteriors
from jvae.latent.choice import Choice
from jvae.latent.coupling import Coupling
from jvae.latent.elbo import measure
from jvae.latent.gaussian import (
    DiagonalGaussian,
    Gaussian,
    kl,
    log_density,
    log_standard,
    noise,
    reparameterize,
)
from jvae.latent.iw_bound import score_batch
from jvae.latent.kl import per_dimension
from jvae.latent.priors import InputPosterior, build_prior
from jvae.models import lstm_vae
from jvae.nn.lstm import LstmConfig
from jvae.training.objectives import Objective, check_kl

SHAPE = (1, 2)
MEAN, LOG_VAR = jnp.array([[0.8, -0.3]]), jnp.array([[-1.0, 0.4]])
COUNT = 4_000


def _encode(params, batch, drop=None, *, cond=None, key_e=None):
    """The same Gaussian for every sentence."""
    shape = (batch.id_e.shape[0], *SHAPE)
    return Gaussian(*(jnp.broadcast_to(x[None], shape) for x in (MEAN, LOG_VAR)))


GAUSSIAN = Posterior(
    encode=_encode,
    sample=lambda params, post, key_ke: reparameterize(post, noise(key_ke, SHAPE)),
    log_prob=lambda params, post, z_egz: log_density(post, z_egz),
    mean=lambda params, post: post.mean_egz,
    form=DiagonalGaussian(),
)


# The posterior of a pseudo-text: its first vector holds mean and log-variance.
INPUTS = InputPosterior(
    start=lambda key, shape: jax.random.normal(key, (*shape, 4)),
    encode=lambda params, x_ktd: Gaussian(x_ktd[:, :1, :2], x_ktd[:, :1, 2:]),
    longest=8,
    sample=GAUSSIAN.sample,
    log_prob=lambda params, post, z_egz: log_density(post, z_egz),
)


def _learned(kind: str, **options: Any):
    parts = build_prior(Choice(kind, tuple(sorted(options.items()))), SHAPE, INPUTS)
    assert parts.init is not None
    return parts.prior, parts.init(jax.random.key(1))


@pytest.mark.fast_on("flow")
@pytest.mark.parametrize("kind", ["gmm", "flow", "vamp"])
def test_the_kl_of_draws_is_the_exact_one_where_that_is_known(kind, toys):
    """A mixture of one Gaussian or of one posterior, a flow at its start; in training and
    evaluation.
    """
    toy = toys.linear(count=COUNT, same=True)
    if kind == "gmm":
        prior, prior_params = _learned("gmm", components=1)
        p = Gaussian(prior_params["mean"], prior_params["log_var"])
        assert np.all(np.abs(prior_params["mean"]) > 0.05)
    elif kind == "vamp":
        prior, prior_params = _learned("vamp", components=1, length=2)
        p = INPUTS.encode({}, prior_params["input"])
    else:
        prior, prior_params = _learned("flow", layers=2, width=4, bins=3)
        p = Gaussian(jnp.zeros((1, *SHAPE)), jnp.zeros((1, *SHAPE)))
    exact = float(jnp.sum(kl(Gaussian(MEAN[None], LOG_VAR[None]), p)))
    model = TextVAE(None, None, prior, toy.gen, GAUSSIAN, SHAPE)
    params, key = toy.params | {"prior": prior_params}, jax.random.key(5)
    terms = jax.jit(lambda p: measure(model, p, toy.batch, key))(params)
    posts = collect_posteriors(model, params, [toy.batch], key)
    scores = score_batch(model, 1)(params, toy.batch, key)
    assert terms.kl_egz is None and posts.kl_egz is None
    error = np.std(terms.kl_e) / np.sqrt(COUNT)
    assert abs(np.mean(terms.kl_e) - exact) < 3 * error < 0.1 * exact
    for other_e in (posts.kl_e, scores.kl_e):
        np.testing.assert_allclose(other_e, terms.kl_e, rtol=1e-4, atol=1e-5)  # the same draws
    assert not per_dimension(model.post, prior)
    with pytest.raises(ConfigError, match="free_bits=dim_max.*per latent dimension"):
        check_kl(Objective(free_bits="dim_max", free_bits_nats=0.1), model)


def test_a_mixture_has_the_density_of_its_draws():
    prior, prior_params = _learned("gmm", components=3)
    prior_params = prior_params | {
        "logit": jnp.array([0.5, -1.0, 0.2]),
        "log_var": 0.3 * prior_params["log_var"],
    }
    params = {"prior": prior_params}
    weight_k = jax.nn.softmax(prior_params["logit"])[:, None]
    mean_kz, var_kz = prior_params["mean"][:, 0], jnp.exp(prior_params["log_var"][:, 0])
    mean_z = jnp.sum(weight_k * mean_kz, axis=0)
    square_z = jnp.sum(weight_k * (var_kz + mean_kz**2), axis=0)

    @jax.jit
    def run(params):
        z_egz = prior.sample(params, example_keys(jax.random.key(2), jnp.arange(20_000)))
        wide_egz = 3.0 * noise(jax.random.split(jax.random.key(3), 20_000), SHAPE)
        log_wide_e = log_standard(wide_egz / 3.0) - SHAPE[1] * jnp.log(3.0)
        return z_egz[:, 0], jnp.exp(prior.log_prob(params, wide_egz) - log_wide_e)

    z_ez, ratio_e = (np.asarray(x, np.float64) for x in run(params))
    for found_ez, want_z in ((z_ez, mean_z), (z_ez**2, square_z)):
        error_z = found_ez.std(axis=0) / np.sqrt(len(z_ez))
        assert np.all(np.abs(found_ez.mean(axis=0) - want_z) < 4 * error_z)
    assert abs(ratio_e.mean() - 1) < 4 * ratio_e.std() / np.sqrt(len(ratio_e)) < 0.1


def test_a_flow_begins_as_the_standard_normal_and_keeps_an_exact_density():
    prior, prior_params = _learned("flow", layers=3, width=5, bins=4)
    key_e = example_keys(jax.random.key(2), jnp.arange(6))
    with jax.enable_x64(True):
        prior_params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), prior_params)
        u_egz = noise(key_e, (2,)).reshape(-1, *SHAPE)

        @jax.jit
        def run(params):
            return prior.sample(params, key_e), prior.log_prob(params, u_egz)

        z_egz, nats_e = run({"prior": prior_params})
        # Some permutation of the noise.
        np.testing.assert_allclose(np.sort(z_egz, axis=2), np.sort(u_egz, axis=2), atol=1e-12)
        np.testing.assert_allclose(nats_e, log_standard(u_egz), rtol=1e-12)

        rng = np.random.default_rng(0)
        prior_params = jax.tree.map(lambda a: a + 0.5 * rng.normal(size=a.shape), prior_params)
        params = {"prior": prior_params}

        def draw(u_z):
            return Coupling(3, 5, 4, 2).outward(prior_params, u_z[None])[0]

        z_ez = jax.jit(jax.vmap(draw))(u_egz[:, 0])
        np.testing.assert_allclose(jax.jit(prior.sample)(params, key_e)[:, 0], z_ez, atol=1e-12)
        slope_e = jnp.linalg.slogdet(jax.jit(jax.vmap(jax.jacfwd(draw)))(u_egz[:, 0]))[1]
        want_e = log_standard(u_egz) - slope_e
        found_e = jax.jit(prior.log_prob)(params, z_ez[:, None])
        np.testing.assert_allclose(found_e, want_e, rtol=1e-9)
        assert np.max(np.abs(np.sort(z_ez, axis=1) - np.sort(u_egz[:, 0], axis=1))) > 0.1


def test_inputs_that_are_texts_have_the_posteriors_of_these_texts():
    stack = LstmConfig(3, 5, 7, init_scale=0.7)
    vamp = Choice("vamp", (("components", 2), ("length", 3)))
    model = lstm_vae.build(lstm_vae.LstmVaeConfig(stack, stack, latent=2, prior=vamp))
    token_et = np.array([[5, 1, 6], [5, 3, 6]], np.int32)
    side = Side(token_et, np.ones_like(token_et), np.tile(np.arange(3, dtype=np.int32), (2, 1)))
    batch = Batch(side, side, None, side.position_bt > 0, np.arange(2))

    @jax.jit
    def run(key):
        params = model.init(key)
        started = params["prior"]["input"]
        table = params["encoder"]["embed"]["table"]
        params |= {"prior": {"input": table[token_et]}}
        q = model.post.encode(params, batch)
        z_egz = model.prior.sample(params, example_keys(key, jnp.arange(2_000)))
        each_ke = jnp.stack(
            [
                log_density(jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], q), z_egz)
                for k in range(2)
            ]
        )
        want_e = logsumexp(each_ke, axis=0) - jnp.log(2.0)
        return started, z_egz, q, want_e, model.prior.log_prob(params, z_egz)

    started, z_egz, q, want_e, found_e = run(jax.random.key(0))
    assert started.shape == (2, 3, 3)
    np.testing.assert_allclose(found_e, want_e, rtol=1e-5, atol=1e-5)
    mean_gz = np.mean(q.mean_egz, axis=0)
    error_gz = np.std(z_egz, axis=0) / np.sqrt(len(z_egz))
    assert np.all(np.abs(np.mean(z_egz, axis=0) - mean_gz) < 4 * error_gz)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(length=0), "length=0: expected an integer from 1"),
        (dict(components=2.5), "components=2.5: expected an integer"),
        (dict(parts=3), "parts: vamp has no such option; options: components, length"),
    ],
)
def test_wrong_options_are_named(options, message):
    stack = LstmConfig(3, 5, 7)
    choice = Choice("vamp", tuple(options.items()))
    with pytest.raises(ConfigError, match=f"^model.prior.{message}"):
        lstm_vae.build(lstm_vae.LstmVaeConfig(stack, stack, prior=choice))


def test_a_prior_of_posteriors_needs_posteriors_of_single_texts():
    stack, vamp = LstmConfig(3, 5, 7), Choice("vamp")
    with pytest.raises(ConfigError, match="vamp, which is a mixture of posteriors of single texts"):
        lstm_vae.build(lstm_vae.LstmVaeConfig(stack, stack, prior=vamp, posterior=Choice("bn")))
