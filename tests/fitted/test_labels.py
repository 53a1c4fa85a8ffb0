"""Priors by label that only sample or move latents, and latents brought to another label."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import example_keys
from jvae.errors import ConfigError, InputError
from jvae.fitted import FITTED, Fitted, fit, has_density, join, transfer, transfers
from jvae.fitted.adversary import Net
from jvae.fitted.contract import density

LABELS = ("bad", "good")
QUICK = {
    "gan": dict(width=8, layers=1),
    "ctrl_gen": dict(width=8),
}


def two_classes(n=2_000, gap=6.0, width=3, seed=0):
    """Latents of two Gaussians that differ in mean and spread, (z_n1d, number_n)."""
    rng = np.random.default_rng(seed)
    number_n = rng.integers(0, 2, n)
    noise_nd = rng.normal(size=(n, width)) * (1.0 + number_n)[:, None]
    mean_nd = np.where(number_n[:, None] == 1, gap, -gap) * np.eye(width)[0]
    return (3.0 + mean_nd + noise_nd).astype(np.float32)[:, None], number_n


def fitted(kind, z_n1d, number_n, **options) -> Fitted:
    latent_density = FITTED[kind].options(**options)
    return fit(kind, latent_density, z_n1d, jax.random.key(0), number_n, labels=LABELS)


def draw(prior, params, n):
    return np.asarray(jax.jit(prior.sample)(params, example_keys(jax.random.key(3), jnp.arange(n))))


def by_hand(kind) -> Fitted:
    """Without a fit, whose programs take seconds to compile: parameters of the first step."""
    size, hot = 3, np.eye(2, dtype=np.float32)
    if kind == "gan":
        net_params = Net(size + 2, size, 8, 1).init(jax.random.key(0))
    else:
        flat = {"kernel": jnp.eye(size), "bias": jnp.zeros((size,))}
        vectors = jnp.array([[0.0] * size, [1.0] * size])
        net_params = {"remover": jnp.eye(size), "label": vectors, "generator": flat}
    standard = {"shift_gz": np.full((1, size), 3.0), "scale_gz": np.full((1, size), 2.0)}
    params = {**standard, "log_share_c": np.log(hot.mean(axis=0)), "density": net_params}
    options = FITTED[kind].options(**QUICK[kind])
    return Fitted(kind, kind, options, (1, size), LABELS, params)


@pytest.mark.fast_on("ctrl_gen")
@pytest.mark.parametrize("kind", QUICK)
def test_draws_belong_to_keys_and_labels(kind):
    prior = by_hand(kind)
    params = join({}, prior)
    z_n1d = draw(prior.prior("good"), params, 40)
    assert z_n1d.shape == (40, 1, 3) and np.isfinite(z_n1d).all()
    np.testing.assert_allclose(draw(prior.prior("good"), params, 5), z_n1d[:5], rtol=1e-4)
    other_n1d = draw(prior.prior("bad"), params, 40)
    assert not np.allclose(other_n1d, z_n1d)
    if kind == "ctrl_gen":
        np.testing.assert_allclose(z_n1d - other_n1d, 2.0, atol=1e-5)  # a vector of one scale
    assert prior.maps("good") is None and not has_density(prior)
    with pytest.raises(ConfigError, match=f"priors of kind {kind} can only be sampled"):
        prior.prior().log_prob(params, jnp.zeros((1, 1, 3)))


@pytest.fixture
def optimized():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_a_label_is_learned(optimized, kind):
    z_n1d, number_n = two_classes(20_000, gap=2.5)
    prior = fitted(kind, z_n1d, number_n)
    params = join({}, prior)
    for number, label in enumerate(LABELS):
        drawn, latents = (
            draw(prior.prior(label), params, 2_000)[:, 0],
            z_n1d[number_n == number][:, 0],
        )
        np.testing.assert_allclose(drawn.mean(axis=0), latents.mean(axis=0), atol=0.5)
        if kind == "gan":
            np.testing.assert_allclose(drawn.std(axis=0), latents.std(axis=0), rtol=0.25)
            assert np.mean(drawn[:, 0] > 3) == pytest.approx(np.mean(latents[:, 0] > 3), abs=0.1)
        else:  # W takes out the whole direction in which labels differ: a label is one point of it
            assert np.mean((drawn[:, 0] > 3) == (label == "good")) > 0.99


@pytest.mark.slow
def test_ctrl_gen_changes_the_label_and_leaves_the_rest(optimized):
    z_n1d, number_n = two_classes(20_000, gap=2.5)
    prior = fitted("ctrl_gen", z_n1d, number_n)
    moved = transfer(prior, z_n1d[:1_000], "good")
    assert np.mean(moved[:, 0, 0] > 3) > 0.9
    for dim in (1, 2):
        assert np.corrcoef(moved[:, 0, dim], z_n1d[:1_000, 0, dim])[0, 1] > 0.9


def test_ctrl_gen_adds_the_vector_of_a_label():
    latent_density = density("ctrl_gen", FITTED["ctrl_gen"].options(), (1, 2), 2)
    p = {
        "remover": jnp.diag(jnp.array([0.0, 1.0])),
        "label": jnp.array([[-2.0, 0.0], [2.0, 0.5]]),
        "generator": {"kernel": jnp.zeros((2, 2)), "bias": jnp.array([1.0, 1.0])},
    }
    u_egz = jnp.array([[[7.0, 3.0]]])
    assert latent_density.moved is not None
    for label, expected in ((0, [-2.0, 3.0]), (1, [2.0, 3.5])):
        np.testing.assert_allclose(
            latent_density.moved(p, u_egz, jnp.asarray(label))[0, 0], expected
        )
    key_e = example_keys(jax.random.key(0), jnp.arange(2))
    drawn = latent_density.sample(p, key_e, jnp.array([0, 1]))
    np.testing.assert_allclose(drawn[:, 0], [[-1.0, 1.0], [3.0, 1.5]])


def test_ctrl_gen_needs_labels():
    z_n1d, _ = two_classes(16)
    options = FITTED["ctrl_gen"].options(**QUICK["ctrl_gen"])
    with pytest.raises(ConfigError, match="needs two labels or more: add --prior.label"):
        fit("ctrl_gen", options, z_n1d, jax.random.key(0))


def test_transfer_is_the_affine_map_between_gaussians():
    z_n1d, number_n = two_classes()
    prior = fitted("gaussian", z_n1d, number_n)
    latents, labels = z_n1d[:50], [LABELS[number] for number in number_n[:50]]
    moved = transfer(prior, latents, "good", labels)
    is_good = number_n[:50] == 1
    np.testing.assert_array_equal(moved[is_good], latents[is_good])
    moments = [
        (z_nd.mean(axis=0), np.linalg.cholesky(np.cov(z_nd.T)))
        for z_nd in (z_n1d[number_n == c, 0].astype(np.float64) for c in (0, 1))
    ]
    (bad_d, bad_dd), (good_d, good_dd) = moments
    left_nd = latents[~is_good, 0] - bad_d
    expected = good_d + np.linalg.solve(bad_dd, left_nd.T).T @ good_dd.T
    np.testing.assert_allclose(moved[~is_good, 0], expected, atol=0.05)
    # Own labels are the likeliest ones, and these classes hardly overlap.
    np.testing.assert_allclose(transfer(prior, latents, "good"), moved, atol=1e-5)
    twice = transfer(prior, latents, "good", labels, 2.0)
    np.testing.assert_allclose(twice - latents, 2 * (moved - latents), atol=1e-4)
    assert transfer(prior, latents[:0], "bad").shape == (0, 1, 3)


def test_transfer_that_cannot_be():
    z_n1d, number_n = two_classes(64)
    prior = fitted("gaussian", z_n1d, number_n)
    with pytest.raises(
        InputError, match="'goof' is unknown .*; did you mean 'good'.*Known: bad, g"
    ):
        transfer(prior, z_n1d[:2], "goof")
    with pytest.raises(InputError, match="1 current labels for 2 latents"):
        transfer(prior, z_n1d[:2], "good", ["bad"])
    mixture = fitted("gmm", z_n1d, number_n, components=1, starts=1, iterations=2)
    assert not transfers(mixture) and transfers(prior)
    with pytest.raises(
        InputError, match="is of kind gmm, which cannot move latents to another label"
    ):
        transfer(mixture, z_n1d[:2], "good")
    diffusion = dataclasses.replace(
        prior, kind="diffusion", options=FITTED["diffusion"].options(width=8, heads=2, layers=1)
    )
    with pytest.raises(InputError, match="cannot infer the labels .* add --prior.trace=exact"):
        transfer(diffusion, z_n1d[:2], "good")
    plain = fit("gaussian", FITTED["gaussian"].options(), z_n1d, jax.random.key(0))
    with pytest.raises(InputError, match="was fitted without labels"):
        transfer(plain, z_n1d[:2], "good")
