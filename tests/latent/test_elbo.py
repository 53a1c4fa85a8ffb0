"""`measure` against its parts, on a model of one parameter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Generator, Posterior, Prior, Side, TextVAE
from jvae.latent.elbo import measure
from jvae.latent.kl import closed_form

SEGMENT = np.array([[1, 1, 3, 3, 3, 0], [2, 2, 2, 2, 1, 1], [0, 0, 0, 0, 0, 0]], np.int32)
IDS = np.array([7, -1, 2, 9, 4, -1, -1, -1, -1], np.int32)


@pytest.fixture(scope="module")
def batch() -> Batch:
    zero_bt = np.zeros_like(SEGMENT)
    start_bt = np.diff(SEGMENT, axis=1, prepend=0) != 0
    side = Side(zero_bt, SEGMENT, zero_bt)
    scored_bt = (SEGMENT > 0) & ~start_bt
    return jax.tree.map(jnp.asarray, Batch(side, side, None, scored_bt, IDS))


def numbers(keys):
    """Two numbers per key, by no random generator: it would take long to compile."""
    return (jax.random.key_data(keys) % 97).astype(jnp.float32) / 10


class _Form(NamedTuple):
    """Terms of the posterior and the prior of the toy, whose KL is said to be z squared."""


@closed_form(_Form, _Form)
def _squared(params, posterior, post, z_egz, prior, cond):
    return jnp.square(z_egz)


def toy(seen: dict, form: _Form | None) -> TextVAE:
    """A model of one parameter that writes down what it is called with."""

    def condition(params, batch, drop=None):
        seen["condition"] = drop
        return params * jnp.ones(IDS.shape)

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        seen["encode"] = drop
        seen["chain"] = key_e
        return cond * batch.id_e

    def sample(params, post, key_ke):
        seen["z"] = key_ke
        return numbers(key_ke)[:, :, None] + post[None, :, None, None]

    def log_q(params, post, z_egz):
        return 2 * z_egz[:, 0, 0] + post

    def log_p(params, z_egz, cond=None):
        return z_egz[:, 0, 1] - cond

    def prepare(params, batch, drop=None, *, cond=None):
        seen["prepare"] = drop
        return batch

    def log_lik(params, ctx, z_egz):
        z_bs = z_egz[:, 0, 0].reshape(ctx.dec.token_bt.shape[0], -1)
        own_bt = jnp.take_along_axis(z_bs, jnp.maximum(ctx.dec.segment_bt - 1, 0), axis=1)
        return jnp.where(ctx.scored_bt, own_bt, 0.0)

    def aux(params, ctx, draws):
        seen["draws"] = draws.z_kegz.shape[0]
        return {"last": draws.z_kegz[-1, :, 0, 1], "post": draws.post + draws.cond}

    gen = Generator(condition, prepare, log_lik, aux, *[None] * 4, draws=2)
    post, prior = Posterior(encode, sample, log_q, None, form), Prior(None, log_p, form)
    return TextVAE(None, None, prior, gen, post, (1, 2))


@pytest.fixture(scope="module", params=[True, False], ids=["closed_form", "no_closed_form"])
def measured(request, batch):
    """Terms of the toy model, and the keys it was called with."""
    seen = {}
    model = toy(seen, _Form() if request.param else None)

    @jax.jit
    def run(key, drop):
        terms = measure(model, 1.0, batch, key, drop)
        assert all(seen[use] is drop for use in ("condition", "encode", "prepare"))
        return terms, jax.random.key_data(seen["z"]), jax.random.key_data(seen["chain"])

    jax.eval_shape(run, jax.random.key(1), None)
    return request.param, *run(jax.random.key(1), jax.random.key(2))


def test_measure_is_made_of_one_draw(measured):
    """Terms of draw 0; auxiliary terms see as many as they ask for."""
    closed, terms, z_data, _ = measured
    z_kegz = np.asarray(z_data % 97, np.float32)[:, :, None] / 10 + IDS[:, None, None]
    z_egz = z_kegz[0]
    scored_e = np.array([1, 0, 2, 1, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(terms.scored_e, scored_e)
    assert terms.scored_e.dtype == jnp.int32
    np.testing.assert_array_equal(terms.valid_e, IDS >= 0)
    np.testing.assert_allclose(terms.nll_e, -scored_e * z_egz[:, 0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.aux["last"], z_kegz[1, :, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(terms.aux["post"], IDS + 1, rtol=1e-6)
    if closed:
        np.testing.assert_allclose(terms.kl_egz, z_egz**2, rtol=1e-5)
        np.testing.assert_allclose(terms.kl_e, np.sum(z_egz**2, axis=(1, 2)), rtol=1e-5)
    else:
        assert terms.kl_egz is None
        log_q_e, log_p_e = 2 * z_egz[:, 0, 0] + IDS, z_egz[:, 0, 1] - 1
        np.testing.assert_allclose(terms.kl_e, log_q_e - log_p_e, rtol=1e-5)


def test_measure_has_one_stream_per_use_and_example(measured):
    _, _, z_data, chain_data = measured
    assert z_data.shape[:2] == (2, 9)
    assert chain_data.shape[:1] == (9,)
    keys = np.concatenate([*z_data, chain_data])
    # Examples 1 and 5 to 8 are empty and share the id -1.
    assert len(np.unique(keys, axis=0)) == 3 * len(np.unique(IDS))
