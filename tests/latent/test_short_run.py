"""Short-run posteriors of whole generators: gradients, packing, dropout, fits, proposals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.backbones.gpt2 import Gpt2Config
from jvae.latent import elbo, mixture, short_run
from jvae.latent.gaussian import log_standard
from jvae.latent.short_run import ChainConfig
from jvae.models import optimus
from jvae.tree import named_leaves

CFG = ChainConfig(steps=3, chains=4, chunk=2)


def _keys(batch, seed=0):
    return example_keys(jax.random.key(seed), batch.id_e)


@pytest.fixture(scope="module")
def transformer():
    stack = Gpt2Config(2, 8, 2, 16, 7, 9, dropout=0.0)
    model = optimus.build(optimus.OptimusConfig(stack, stack, latent=2))
    params = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda p: 4 * p, params)


def _ends(model, params, batch, cfg=CFG, drop=None, **start):
    post = short_run.attach(model.gen, model.prior, cfg, **start)
    return jax.jit(lambda p, b: post.encode(p, b, drop, key_e=_keys(b)))(params, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "optimus"])
def test_end_points_do_not_depend_on_packing(toys, transformer, name):
    model, params = transformer if name == "optimus" else toys.lstm()
    packed, single, order = toys.sentences()

    @jax.jit
    def go(params):
        chains = [
            short_run.prepare(model.gen, model.prior, CFG, params, batch)
            for batch in (packed, single)
        ]
        ends = [c.end(_keys(b))[0] for c, b in zip(chains, (packed, single), strict=True)]
        return *ends, chains[1].start(_keys(single))

    here, alone, start = go(params)
    assert np.abs(alone - start).max() > 0.05
    np.testing.assert_allclose(here[jnp.array(order)], alone, rtol=1e-3, atol=1e-4)


def test_score_of_a_batch_is_that_of_each_sentence_alone(toys):
    model, params = toys.lstm()
    _, single, _ = toys.sentences()
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 2)), jnp.float32)

    def log_lik(z_egz):
        ctx = model.gen.prepare(params, single)
        return short_run.log_joint(model.gen, model.prior, params, ctx, single)(z_egz)

    @jax.jit
    def both(z):
        whole = jax.grad(lambda z: log_lik(z).sum())(z)
        return whole, [jax.grad(lambda z, e=e: log_lik(z)[e])(z)[e] for e in range(3)]

    whole, alone = both(z)
    np.testing.assert_allclose(whole, np.stack(alone), rtol=1e-5, atol=1e-6)


def _products(jaxpr):
    """Shapes of all matrix products, inner jaxprs included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield tuple(eqn.outvars[0].aval.shape)
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _products(inner)


def test_no_parameter_gradient_is_formed_inside_the_chain(toys):
    """Weights have shapes that nothing else has, so the gradient of one would show."""
    model, params = toys.lstm(hidden=11, latent=5)
    packed = toys.sentences().packed
    post = short_run.attach(model.gen, model.prior, CFG)

    def through_chain(params):
        return jnp.sum(post.encode(params, packed, key_e=_keys(packed)))

    def through_decoder(params):
        ctx = model.gen.prepare(params, packed)
        return model.gen.log_lik(params, ctx, jnp.zeros((4, 1, 5))).sum()

    def primitives(loss):
        return set(_products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))

    named = named_leaves(params["decoder"])
    kernels = {leaf.shape for name, leaf in named.items() if not name.endswith("bias")}
    weights = kernels | {shape[::-1] for shape in kernels} | {(11, 44), (44, 11), (4, 11, 11)}
    assert primitives(through_chain) and not primitives(through_chain) & weights
    assert primitives(through_decoder) & weights  # where they are formed, the search finds them
    grads = jax.jit(jax.grad(through_chain))(params)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_dropout_masks_are_one_per_chain_or_fresh_in_each_step(toys):
    model, params = toys.lstm()
    single = toys.sentences().single
    drop = jax.random.key(5)
    keys = _keys(single)

    def by_hand(drop_at, steps=3):
        @jax.jit
        def go(params):
            chain = short_run.prepare(model.gen, model.prior, CFG, params, single)
            z, noise_at = chain.start(keys), short_run.noise_of(keys, (1, 2))
            for k in range(steps):
                ctx = model.gen.prepare(params, single, drop_at(k))
                target = short_run.log_joint(model.gen, model.prior, params, ctx, single)
                size = short_run.initial_sizes(CFG)[k]
                z = z + size**2 / 2 * jax.grad(lambda z, f=target: f(z).sum())(z)
                z = z + CFG.temperature * size * noise_at(k)
            return z

        return go(params)

    np.testing.assert_allclose(
        _ends(model, params, single, drop=drop), by_hand(lambda k: drop), rtol=1e-4, atol=1e-5
    )
    fresh = dataclasses.replace(CFG, fresh_dropout=True)
    np.testing.assert_allclose(
        _ends(model, params, single, fresh, drop=drop),
        by_hand(lambda k: jax.random.fold_in(drop, k)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("lstm", marks=pytest.mark.slow), "optimus"])
def test_refined_chains_start_at_the_amortised_posterior(toys, transformer, name):
    model, params = transformer if name == "optimus" else toys.lstm()
    single = toys.sentences().single
    none = dataclasses.replace(CFG, steps=0)
    few = ChainConfig(steps=8, schedule="constant", step_size=0.2, temperature=0.0)
    begin, climb = (short_run.refine(model.post, model.gen, model.prior, c) for c in (none, few))

    @jax.jit
    def go(params):
        key_re = jax.vmap(lambda k: _keys(single, k))(jnp.arange(300))
        starts = jax.vmap(lambda key_e: begin.encode(params, single, key_e=key_e))(key_re)
        target = short_run.log_joint(
            model.gen, model.prior, params, model.gen.prepare(params, single), single
        )
        moved = climb.encode(params, single, key_e=_keys(single))
        begun = begin.encode(params, single, key_e=_keys(single))
        return starts, target(moved), target(begun), model.post.encode(params, single)

    starts, after, before, q = go(params)
    error = np.exp(0.5 * q.log_var_egz) / np.sqrt(300)
    assert np.all(np.abs(starts.mean(0) - q.mean_egz) < 4.5 * error)
    assert np.all(after > before)


def test_fit_is_the_moments_of_its_chains_and_its_baseline_is_the_prior(toys):
    toy = toys.linear(count=40)
    cfg = ChainConfig(steps=120, schedule="constant", step_size=0.2, temperature=1.0, chunk=16)
    key_e = _keys(toy.batch)

    @jax.jit
    def fit(params):
        built = [
            short_run.fitted(toy.gen, toy.prior, c).encode(params, toy.batch, key_e=key_e)
            for c in (cfg, dataclasses.replace(cfg, chunk=5), dataclasses.replace(cfg, steps=0))
        ]
        return built

    post, chunked, baseline = fit(toy.params)
    for a, b in zip(post, chunked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        post.mean_egz, 0.5 * (post.mean_a_egz + post.mean_b_egz), rtol=1e-4, atol=1e-5
    )
    variance = np.exp(post.log_var_egz).mean(axis=(0, 1)) / 1.2**2
    np.testing.assert_allclose(variance, np.diag(toy.cov_zz), rtol=0.15)
    assert np.abs(post.mean_egz[:, 0] - toy.mean_ez).max() < 5 * np.sqrt(0.5 / 32)
    assert np.abs(baseline.mean_egz).max() < 5 / np.sqrt(32)


def test_floor_of_the_fitted_variance(toys):
    toy = toys.linear()
    cold = ChainConfig(steps=200, schedule="constant", step_size=0.4, temperature=0.0)
    post = jax.jit(
        lambda p: short_run.fitted(toy.gen, toy.prior, cold).encode(
            p, toy.batch, key_e=_keys(toy.batch)
        )
    )(toy.params)
    np.testing.assert_allclose(np.exp(post.log_var_egz), 1.44e-4, rtol=1e-3)


def test_mixture_draws_from_both_and_its_density_is_theirs(toys):
    toy = toys.linear(count=1)
    fit = short_run.fitted(toy.gen, toy.prior, CFG)
    post = short_run.Fitted(*(jnp.full((1, 1, 2), v) for v in (6.0, -4.0, 0.0, 0.0)))
    proposal = mixture.with_prior(toy.prior, fit)

    @jax.jit
    def draw(params):
        key_ke = example_keys(jax.random.key(0), jnp.arange(1), jnp.arange(2_000))
        z_kegz = proposal.sample(params, post, key_ke)
        return z_kegz, jax.vmap(lambda z: proposal.log_prob(params, post, z))(z_kegz)

    z, nats = draw(toy.params)
    near = np.asarray(z[:, 0, 0, 0] > 4)
    assert abs(near.mean() - 0.5) < 0.05
    np.testing.assert_allclose(np.cov(z[near, 0, 0].T), np.exp(-4.0) * np.eye(2), atol=0.004)
    np.testing.assert_allclose(np.cov(z[~near, 0, 0].T), np.eye(2), atol=0.15)
    # Each side of the mixture is blind to the other here, so the density is half of one.
    expected = jnp.where(
        near,
        jax.vmap(lambda z: fit.log_prob({}, post, z))(z)[:, 0],
        jax.vmap(log_standard)(z)[:, 0],
    )
    np.testing.assert_allclose(nats[:, 0], expected - np.log(2), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="no density"):
        mixture.with_prior(toy.prior, short_run.attach(toy.gen, toy.prior, CFG))


def test_the_contract_measures_a_model_without_an_encoder(toys):
    model, params = toys.lstm()
    chain = model._replace(post=short_run.attach(model.gen, model.prior, CFG))
    packed = toys.sentences().packed
    terms = jax.jit(lambda p: elbo.measure(chain, p, packed, jax.random.key(0)))(params)
    np.testing.assert_array_equal(terms.kl_egz, np.zeros((4, 1, 2)))
    np.testing.assert_array_equal(terms.kl_e, np.zeros(4))
    assert np.all(np.asarray(terms.nll_e)[:3] > 0) and terms.nll_e[3] == 0
