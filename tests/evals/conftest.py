"""Toy models with exact answers, as plain functions on the contract.

A toy made twice is the same object, so what one test compiled the next one reuses.
"""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, DecodeState, Generator, Posterior, Prior, Side, TextVAE
from jvae.latent.gaussian import DiagonalGaussian, StandardNormal

START = 3  # start id of the discrete toy, whose words are 0, 1, 2
LENGTH = 4


class Gaussian(NamedTuple):
    mean_egz: jax.Array
    log_var_egz: jax.Array


def log_normal(z, mean=0.0, log_var=0.0):
    log_var = jnp.broadcast_to(log_var, z.shape)
    terms = jnp.log(2 * jnp.pi) + log_var + (z - mean) ** 2 * jnp.exp(-log_var)
    return -0.5 * jnp.sum(terms, axis=(1, 2))


def gaussian_posterior(encode, closed_form=True):
    """One diagonal Gaussian; noise is drawn flat, so splitting the latent into groups keeps it."""

    def sample(params, post, key_ke):
        draw = lambda key: jax.random.normal(key, (post.mean_egz[0].size,))  # noqa: E731
        noise = jax.vmap(jax.vmap(draw))(key_ke).reshape(*key_ke.shape, *post.mean_egz.shape[1:])
        return post.mean_egz[None] + jnp.exp(0.5 * post.log_var_egz)[None] * noise

    return Posterior(
        encode=encode,
        sample=sample,
        log_prob=lambda params, post, z_egz: log_normal(z_egz, post.mean_egz, post.log_var_egz),
        mean=lambda params, post: post.mean_egz,
        form=DiagonalGaussian() if closed_form else None,
    )


def unused(*args, **kwargs):
    raise AssertionError("not part of this toy")


PRIOR = Prior(unused, lambda params, z_egz, cond=None: log_normal(z_egz), StandardNormal())


def generator(log_lik, prepare, start=unused, step=unused):
    return Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=unused,
        reorder=unused,
    )


def text_vae(gen, post, latent_shape):
    return TextVAE(lambda key: {}, {}, PRIOR, gen, post, latent_shape)


def id_batches(ids, size):
    """Two tokens per row, the second scored; the last batch is filled with empty slots."""
    out = []
    for first in range(0, len(ids), size):
        id_e = np.full(size, -1, np.int32)
        part = ids[first : first + size]
        id_e[: len(part)] = part
        filled = (id_e >= 0).astype(np.int32)[:, None] * np.ones((1, 2), np.int32)
        side = Side(filled, filled, np.tile(np.arange(2, dtype=np.int32), (size, 1)))
        out.append(Batch(side, side, None, (filled > 0) & (side.position_bt == 1), id_e))
    return out


@functools.lru_cache
def table_model(shape, closed_form=True, log_lik=None):
    """Posteriors looked up by example id in params `mean` and `log_var`; the decoder is flat."""

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        return Gaussian(params["mean"][batch.id_e], params["log_var"][batch.id_e])

    def prepare(params, batch, drop=None, *, cond=None):
        return batch.scored_bt, params.get("x", params["mean"])[batch.id_e]

    def flat(params, ctx, z_egz):
        return jnp.where(ctx[0], -1.0, 0.0)

    gen = generator(log_lik or flat, prepare)
    return text_vae(gen, gaussian_posterior(encode, closed_form), shape)


def linear_gaussian_log_lik(params, ctx, z_egz):
    scored_bt, x_egz = ctx
    return jnp.where(scored_bt, log_normal(x_egz, z_egz, jnp.log(0.5))[:, None], 0.0)


def linear_gaussian(width, count, seed=0):
    """x = z + noise of variance 0.5, an imperfect posterior; model, params, exact -log p of x."""
    x = np.random.default_rng(seed).normal(size=(count, 1, width)) * np.sqrt(1.5)
    params = {
        "x": jnp.asarray(x, jnp.float32),
        "mean": jnp.asarray(0.97 * x / 1.5, jnp.float32),
        "log_var": jnp.full(x.shape, np.log(1.15 / 3), jnp.float32),
    }
    exact = 0.5 * np.sum(np.log(2 * np.pi * 1.5) + x**2 / 1.5, axis=(1, 2))
    return table_model((1, width), log_lik=linear_gaussian_log_lik), params, exact


@functools.lru_cache
def discrete(shape=(1, 2), reads_z=True, count=None):
    """Three words, four per sentence, each given the word before and z.

    Args:
      count: called with a name at each run-time execution of that function.
    """
    width = shape[0] * shape[1]

    def note(name, *operands):
        if count is not None:
            jax.debug.callback(lambda *_: count(name), *operands)

    def encode(params, batch, drop=None, *, cond=None, key_e=None):
        note("encode")
        x_btd = params["embed"][batch.enc.token_bt]
        slot = jnp.arange(1, batch.slots + 1)
        member_bts = batch.enc.segment_bt[:, :, None] == slot[None, None]
        x_bsd = jnp.einsum("btd,bts->bsd", x_btd, member_bts.astype(jnp.float32))
        mean_egz = (x_bsd / (LENGTH + 1)).reshape(batch.id_e.shape[0], *shape)
        log_var = jnp.broadcast_to(params["log_var"].reshape(1, *shape), mean_egz.shape)
        return Gaussian(mean_egz, log_var)

    def prepare(params, batch, drop=None, *, cond=None):
        note("prepare")
        prev_bt = jnp.pad(batch.dec.token_bt, ((0, 0), (1, 0)))[:, :-1]
        place_bt = jnp.arange(batch.dec.token_bt.shape[0])[:, None] * batch.slots
        place_bt = place_bt + jnp.maximum(batch.dec.segment_bt - 1, 0)
        return params["prev"][prev_bt], batch.dec.token_bt, place_bt, batch.scored_bt

    def logits(params, base, z):
        return base + (jnp.tanh(z) @ params["out"] if reads_z else 0.0)

    def log_lik(params, ctx, z_egz):
        note("log_lik", jnp.sum(z_egz))
        base_btv, token_bt, place_bt, scored_bt = ctx
        z_btd = z_egz.reshape(z_egz.shape[0], width)[place_bt]
        log_p_btv = jax.nn.log_softmax(logits(params, base_btv, z_btd))
        word_bt1 = jnp.minimum(token_bt, 2)[..., None]
        return jnp.where(scored_bt, jnp.take_along_axis(log_p_btv, word_bt1, -1)[..., 0], 0.0)

    def padded(params, token_e, z_ed):
        return jnp.pad(
            logits(params, params["prev"][token_e], z_ed),
            ((0, 0), (0, 1)),
            constant_values=-jnp.inf,
        )

    def start(params, z_egz, prompt, max_len, cond=None):
        z_ed = z_egz.reshape(z_egz.shape[0], width)
        token_e = jnp.take_along_axis(prompt.token_et, prompt.length_e[:, None] - 1, 1)[:, 0]
        return padded(params, token_e, z_ed), DecodeState(z_ed, prompt.length_e)

    def step(params, state, token_e):
        return padded(params, token_e, state.cache), state._replace(position_e=state.position_e + 1)

    gen = generator(log_lik, prepare, start, step)
    return text_vae(gen, gaussian_posterior(encode), shape)


def discrete_params(width=2, seed=0, strength=2.0):
    rng = np.random.default_rng(seed)
    return {
        "embed": jnp.asarray(rng.normal(size=(4, width)) * 2, jnp.float32),
        "log_var": jnp.asarray(rng.normal(size=(width,)) * 0.3 - 1.0, jnp.float32),
        "prev": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(width, 3)) * strength, jnp.float32),
    }


def all_strings():
    return np.stack(np.meshgrid(*[np.arange(3)] * LENGTH, indexing="ij"), -1).reshape(-1, LENGTH)


def text_batches(words, rows, slots=1, pad=0, empty=()):
    """Packs sentences by id into rows; slots whose number in a batch is in `empty` stay empty."""
    out, ids, size = [], list(range(len(words))), LENGTH + 1
    while ids:
        token = np.zeros((rows, slots * size + pad), np.int32)
        segment, position = np.zeros_like(token), np.zeros_like(token)
        id_e = np.full(rows * slots, -1, np.int32)
        for e in range(rows * slots):
            if e in empty or not ids:
                continue
            id_e[e] = ids.pop(0)
            row, slot = divmod(e, slots)
            span = slice(slot * size, (slot + 1) * size)
            token[row, span] = [START, *words[id_e[e]]]
            segment[row, span] = slot + 1
            position[row, span] = np.arange(size)
        side = Side(token, segment, position)
        out.append(Batch(side, side, None, (segment > 0) & (position > 0), id_e))
    return out


@pytest.fixture(scope="session")
def toys():
    names = (Gaussian, gaussian_posterior, text_vae, id_batches, table_model, linear_gaussian)
    more = (discrete, discrete_params, all_strings, text_batches, log_normal)
    return types.SimpleNamespace(**{item.__name__: item for item in names + more})
