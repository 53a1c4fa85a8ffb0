"""A linear-Gaussian generator, whose posterior is known, and a small LSTM generator."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Batch, Generator, Prior, Side
from jvae.latent.priors import standard_normal
from jvae.models import lstm_vae
from jvae.nn.lstm import LstmConfig


def _unused(*args, **kwargs):
    raise AssertionError("not part of this toy")


class Linear(NamedTuple):
    """x = M z + noise of variance v; one scored token carries the density of x."""

    gen: Generator
    prior: Prior
    params: dict
    batch: Batch
    mean_ez: np.ndarray  # mean of the exact posterior
    cov_zz: np.ndarray
    log_p_e: np.ndarray


@functools.cache
def _linear(width: int = 2, variance: float = 0.5, count: int = 3, same: bool = False) -> Linear:
    rng = np.random.default_rng(0)
    matrix = np.eye(width) + 0.4 * rng.normal(size=(width, width))
    joint = matrix @ matrix.T + variance * np.eye(width)
    x = rng.normal(size=(count, width)) @ np.linalg.cholesky(joint).T
    x = np.tile(x[:1], (count, 1)) if same else x

    def prepare(params, batch, drop=None, *, cond=None):
        return batch.scored_bt, params["x"][batch.id_e]

    def log_lik(params, ctx, z_egz):
        scored_bt, x_eo = ctx
        left_eo = x_eo - z_egz[:, 0] @ params["matrix"].T
        nats_e = -0.5 * jnp.sum(left_eo**2, axis=1) / variance
        nats_e = nats_e - 0.5 * width * jnp.log(2 * jnp.pi * variance)
        return jnp.where(scored_bt, nats_e[:, None], 0.0)

    gen = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=_unused,
        step=_unused,
        expand=_unused,
        reorder=_unused,
    )
    ones = np.ones((count, 2), np.int32)
    side = Side(ones, ones, np.tile(np.arange(2, dtype=np.int32), (count, 1)))
    batch = Batch(None, side, None, side.position_bt == 1, np.arange(count))
    cov = np.linalg.inv(np.eye(width) + matrix.T @ matrix / variance)
    exact = -0.5 * np.sum(x * np.linalg.solve(joint, x.T).T, axis=1)
    exact -= 0.5 * np.linalg.slogdet(2 * np.pi * joint)[1]
    params = {"x": jnp.asarray(x), "matrix": jnp.asarray(matrix)}
    prior = standard_normal((1, width))
    return Linear(gen, prior, params, batch, x @ matrix @ cov / variance, cov, exact)


class Sentences(NamedTuple):
    """Three sentences, packed in two rows or one per row, for an LSTM of vocabulary 7."""

    packed: Batch
    single: Batch
    order: tuple[int, ...]  # where the sentences of `single` are among the examples of `packed`


@functools.cache
def _sentences() -> Sentences:
    texts = [[5, 1, 6], [5, 2, 3, 6], [5, 4, 1, 2, 6]]

    def side(rows):
        token, segment, position = (np.zeros((len(rows), 8), np.int32) for _ in range(3))
        for b, ids in enumerate(rows):
            t = 0
            for slot, e in enumerate(ids):
                n = len(texts[e])
                token[b, t : t + n], segment[b, t : t + n] = texts[e], slot + 1
                position[b, t : t + n] = np.arange(n)
                t += n
        return Side(token, segment, position)

    def batch(rows, id_e):
        dec = side(rows)
        return Batch(dec, dec, None, (dec.segment_bt > 0) & (dec.position_bt > 0), np.array(id_e))

    return Sentences(
        batch([[2, 0], [1]], [2, 0, 1, -1]), batch([[0], [1], [2]], [0, 1, 2]), (1, 2, 0)
    )


@functools.cache
def _lstm(latent: int = 2, hidden: int = 5, dtype: str = "float32"):
    config = LstmConfig(3, hidden, 7, init_scale=0.7, dtype=dtype)
    model = lstm_vae.build(lstm_vae.LstmVaeConfig(config, config, latent=latent))
    return model, jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def toys():
    return types.SimpleNamespace(linear=_linear, lstm=_lstm, sentences=_sentences)
