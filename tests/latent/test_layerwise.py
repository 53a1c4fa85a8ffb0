"""Chains of latents against quadrature, enumeration and sums written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jvae.api import example_keys
from jvae.latent import gaussian, layerwise
from jvae.latent.kl import kl

E, G, Z = 3, 2, 1


def make_chain(groups=G, width=Z, **changes) -> layerwise.Chain:
    """Heads that are linear in the summary; parameters: {a, b, c, prior, posterior}."""
    head = lambda name: lambda p, s_ez: jnp.einsum("ez,zcy->ecy", s_ez, p[name])  # noqa: E731
    return layerwise.Chain(
        groups=groups,
        width=width,
        params_of=lambda params: params,
        summary=lambda p, s_ez, z_ez: jnp.tanh(s_ez @ p["a"] + z_ez @ p["b"] + p["c"][None]),
        prior=head("prior"),
        posterior=head("posterior"),
        source_of=lambda cond: cond,  # the condition of this toy is the addend itself
        **changes,
    )


def make_params(groups=G, width=Z, seed=0, scale=0.7):
    draw = np.random.default_rng(seed).normal
    return {
        "a": jnp.asarray(scale * draw(size=(groups, width, width)), jnp.float32),
        "b": jnp.asarray(scale * draw(size=(groups, width, width)), jnp.float32),
        "c": jnp.asarray(scale * draw(size=(groups, width)), jnp.float32),
        "prior": jnp.asarray(scale * draw(size=(groups, width, 2, width)), jnp.float32),
        "posterior": jnp.asarray(scale * draw(size=(groups, width, 2, width)), jnp.float32),
    }


def make_post(groups=G, width=Z, seed=1):
    """What the text adds to the posterior's heads, and a source to the prior's."""
    draw = np.random.default_rng(seed).normal
    shape = (E, groups, 2, width)
    text, source = (jnp.asarray(0.5 * draw(size=shape), jnp.float32) for _ in range(2))
    return layerwise.ChainPost(text), source


def by_hand(params, addend_gcz, kind, z_gz, clip=5.0):
    """Means and standard deviations along z, in NumPy, one example."""
    s, below, means, stds = np.zeros(z_gz.shape[1]), np.zeros(z_gz.shape[1]), [], []
    for g, z in enumerate(z_gz):
        a, b, c, head = (np.asarray(params[k][g], np.float64) for k in ("a", "b", "c", kind))
        s = np.tanh(s @ a + below @ b + c)
        stats = np.clip(np.einsum("z,zcy->cy", s, head) + addend_gcz[g], -clip, clip)
        means.append(stats[0])
        stds.append(np.exp(0.5 * stats[1]))
        below = z
    return np.array(means), np.array(stds)


def test_densities_and_means_equal_those_written_out():
    groups, width = 3, 2
    chain, params, (post, source) = make_chain(groups, width), make_params(3, 2), make_post(3, 2)
    z_egz = jnp.asarray(np.random.default_rng(2).normal(size=(E, groups, width)), jnp.float32)
    posterior, prior = layerwise.posterior(chain, lambda *_: post), layerwise.prior(chain)

    @jax.jit
    def everything(params, post, source, z_egz):
        log_p_e = prior.log_prob(params, z_egz, source)
        return posterior.log_prob(params, post, z_egz), log_p_e, posterior.mean(params, post)

    log_q_e, log_p_e, mean_egz = map(np.asarray, everything(params, post, source, z_egz))
    for e in range(E):
        for got, head, addend in (
            (log_q_e[e], "posterior", post.text_egcz),
            (log_p_e[e], "prior", source),
        ):
            mean, std = by_hand(params, np.asarray(addend[e]), head, np.asarray(z_egz[e]))
            np.testing.assert_allclose(got, norm.logpdf(z_egz[e], mean, std).sum(), rtol=1e-5)
        # The chain of means is the z that is its own mean.
        mean, _ = by_hand(params, np.asarray(post.text_egcz[e]), "posterior", mean_egz[e])
        np.testing.assert_allclose(mean_egz[e], mean, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def grid():
    """Log densities of prior and posterior on a grid over (z_1, z_2), and the area of a cell."""
    chain, params, chain_post = make_chain(), make_params(), make_post()
    line = jnp.linspace(-15.0, 15.0, 601)
    z_ngz = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, G, Z)

    @jax.jit
    def densities(z_egz):
        spread = lambda a: jnp.broadcast_to(a[:1], (len(z_egz), *a.shape[1:]))  # noqa: E731
        post, source = jax.tree.map(spread, chain_post)
        log_q = layerwise.posterior(chain, lambda *_: post).log_prob(params, post, z_egz)
        return log_q, layerwise.prior(chain).log_prob(params, z_egz, source)

    log_q_n, log_p_n = (np.asarray(x, np.float64) for x in densities(z_ngz))
    return chain, params, chain_post, log_q_n, log_p_n, float(line[1] - line[0]) ** 2


def test_densities_integrate_to_one(grid):
    *_, log_q_n, log_p_n, area = grid
    np.testing.assert_allclose(np.exp(log_q_n).sum() * area, 1.0, rtol=1e-4)
    np.testing.assert_allclose(np.exp(log_p_n).sum() * area, 1.0, rtol=1e-4)


def test_closed_form_kl_has_the_mean_of_the_kl_by_quadrature(grid):
    chain, params, chain_post, log_q_n, log_p_n, area = grid
    exact = np.sum(np.exp(log_q_n) * (log_q_n - log_p_n)) * area
    draws = 20_000
    key_ke = example_keys(jax.random.key(0), jnp.arange(1), jnp.arange(draws))
    one = jax.tree.map(lambda a: a[:1], chain_post)
    posterior, prior = layerwise.posterior(chain, lambda *_: one[0]), layerwise.prior(chain)

    @jax.jit
    def draw(params, one, key_ke):
        z_kgz = posterior.sample(params, one[0], key_ke)[:, 0]
        spread = lambda a: jnp.broadcast_to(a, (draws, *a.shape[1:]))  # noqa: E731
        post, source = jax.tree.map(spread, one)
        log_q_k = posterior.log_prob(params, post, z_kgz)
        actual = kl(params, posterior, post, z_kgz, prior, source)
        return actual, log_q_k - prior.log_prob(params, z_kgz, source)

    (kl_k, kl_kgz), gap_k = draw(params, one, key_ke)
    kl_k = np.asarray(kl_k, np.float64)
    kl_kgz = np.asarray(kl_kgz, np.float64)
    np.testing.assert_allclose(kl_k, kl_kgz.sum(axis=(1, 2)), rtol=1e-5)
    error = kl_k.std() / np.sqrt(draws)
    assert error < 0.02 * exact
    assert abs(kl_k.mean() - exact) < 4 * error
    # The first group reads nothing sampled: its KL is the same in every draw, the second's is not.
    assert np.ptp(kl_kgz[:, 0]) == 0 < np.ptp(kl_kgz[:, 1])

    # Draws and densities are of one distribution: E_q[log q - log p] is the same number.
    gap_k = np.asarray(gap_k, np.float64)
    assert abs(gap_k.mean() - exact) < 4 * gap_k.std() / np.sqrt(draws)


@pytest.fixture(scope="module")
def noise_egz():
    return gaussian.noise(jax.random.split(jax.random.key(0), E), (3, 2))


def test_density_of_a_draw_is_that_of_its_noise(noise_egz):
    chain, params, (post, _) = make_chain(3, 2), make_params(3, 2), make_post(3, 2)
    posterior = layerwise.posterior(chain, lambda *_: post)

    @jax.jit
    def densities(params, post, noise_egz):
        walked = layerwise.walk(
            chain, params, layerwise.reparameterized, noise_egz, text_egcz=post.text_egcz
        )
        log_var_egz = layerwise.clipped(chain, walked.posterior).log_var_egz
        expected = gaussian.log_standard(noise_egz) - 0.5 * jnp.sum(log_var_egz, axis=(1, 2))
        return posterior.log_prob(params, post, walked.z_egz), expected

    np.testing.assert_allclose(*densities(params, post, noise_egz), rtol=1e-5)


def test_equal_heads_have_no_divergence_and_draw_alike():
    params, (post, _), chain = make_params(3, 2), make_post(3, 2), make_chain(3, 2)
    params["posterior"] = params["prior"]
    posterior, prior = layerwise.posterior(chain, lambda *_: post), layerwise.prior(chain)

    @jax.jit
    def both(params, post, key_e):
        source = post.text_egcz
        z_egz = posterior.sample(params, post, key_e[None])[0]
        actual = kl(params, posterior, post, z_egz, prior, source)
        return z_egz, actual.nats_egz, prior.sample(params, key_e, source)

    z_egz, kl_egz, prior_egz = both(params, post, jax.random.split(jax.random.key(0), E))
    np.testing.assert_array_equal(kl_egz, 0.0)
    np.testing.assert_allclose(z_egz, prior_egz, rtol=1e-6)


def test_identical_layers_without_recurrence_add_up():
    """L equal groups that read nothing of each other: every density is L times that of one."""
    layers, width = 4, 2
    one = make_params(1, width)
    one["b"] = jnp.zeros_like(one["b"])
    many = jax.tree.map(lambda a: jnp.repeat(a, layers, axis=0), one)
    many["a"] = jnp.zeros_like(many["a"])
    post, _ = make_post(1, width)
    z_egz = gaussian.noise(jax.random.split(jax.random.key(0), E), (1, width))

    def densities(groups, params, post, z_egz):
        chain = make_chain(groups, width)
        posterior, prior = layerwise.posterior(chain, lambda *_: post), layerwise.prior(chain)
        log_q_e = posterior.log_prob(params, post, z_egz)
        actual = kl(params, posterior, post, z_egz, prior)
        return log_q_e, prior.log_prob(params, z_egz), actual.nats_e

    repeated = jax.tree.map(lambda a: jnp.repeat(a, layers, axis=1), (post, z_egz))
    run = jax.jit(densities, static_argnums=0)
    for single, all_ in zip(run(1, one, post, z_egz), run(layers, many, *repeated), strict=True):
        np.testing.assert_allclose(all_, layers * np.asarray(single), rtol=1e-5)


def test_clip_bounds_the_statistics_and_stops_their_gradient():
    chain, params, (post, _) = make_chain(clip=0.5), make_params(), make_post()
    text_egcz = post.text_egcz.at[:, :, 0].set(9.0)
    pick, noise_egz = layerwise.reparameterized, jnp.zeros((E, G, Z))

    def latents(text_egcz):
        z_egz = layerwise.walk(chain, params, pick, noise_egz, text_egcz=text_egcz).z_egz
        return jnp.sum(z_egz), z_egz

    (_, z_egz), grad = jax.jit(jax.value_and_grad(latents, has_aux=True))(text_egcz)
    np.testing.assert_array_equal(grad[:, :, 0], 0.0)
    np.testing.assert_allclose(z_egz, 0.5)


@pytest.mark.parametrize("learned", [True, False])
def test_first_prior_may_be_standard_normal(noise_egz, learned):
    chain = make_chain(3, 2, learned_first=learned)
    walk = jax.jit(lambda p, z: layerwise.walk(chain, p, layerwise.the_given, z).prior)
    mean_egz, log_var_egz = map(np.asarray, walk(make_params(3, 2), noise_egz))
    standard = np.all(mean_egz[:, 0] == 0) and np.all(log_var_egz[:, 0] == 0)
    assert standard != learned
    assert np.all(mean_egz[:, 1:] != 0)


def test_a_draw_depends_on_its_own_key_alone():
    chain, params, (post, _) = make_chain(), make_params(), make_post()
    sample = jax.jit(layerwise.posterior(chain, lambda *_: post).sample)
    key_ke = example_keys(jax.random.key(0), jnp.arange(E), jnp.arange(4))
    z_kegz = sample(params, post, key_ke)
    assert z_kegz.shape == (4, E, G, Z)
    alone = jax.tree.map(lambda a: a[1:2], post)
    z_alone = sample(params, alone, key_ke[2:3, 1:2])
    np.testing.assert_allclose(z_alone[0, 0], z_kegz[2, 1], rtol=1e-6)
