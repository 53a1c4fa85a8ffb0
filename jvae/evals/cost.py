"""The cost of NLL_K relative to K bare decoder passes."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import (
    Batch,
    Context,
    Generator,
    Params,
    Post,
    Posterior,
    TextVAE,
    example_keys,
    has_latent,
    infer,
)
from jvae.latent.iw_bound import nll_of, score_batch
from jvae.latent.mixture import Proposal


@partial(jax.jit, static_argnames=("gen", "post", "k"))
def _ready(
    gen: Generator, post: Posterior, k: int, params: Params, batch: Batch, key: Array
) -> tuple[Context, Array]:
    cond, q, z_key = infer(gen, post, params, batch, key)
    z_kegz = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(k)))
    return gen.prepare(params, batch, cond=cond), z_kegz


@partial(jax.jit, static_argnames=("gen", "chunk"))
def _decoder_passes(
    gen: Generator, chunk: int, params: Params, ctx: Context, batch: Batch, z_kegz: Array
) -> Array:
    def nll(z_egz: Array) -> Array:
        return nll_of(gen, params, ctx, batch, z_egz)

    return jax.lax.map(nll, z_kegz, batch_size=min(chunk, len(z_kegz)))


def bare_passes(
    model: TextVAE,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
) -> Callable[[], Array]:
    """A compiled call that runs K decoder passes over a batch, each with its own latent, and
    nothing else.

    The latents and everything that does not depend on z are computed beforehand, outside the call,
    so that a comparison with it is not flattered.
    """
    k = k if has_latent(model) else 1
    ctx, z_kegz = _ready(model.gen, model.metric_post, k, params, batch, key)
    return partial(_decoder_passes, model.gen, chunk, params, ctx, batch, z_kegz)


class Cost(NamedTuple):
    """Times relative to K bare decoder passes on the same batch."""

    whole: float  # relative cost of NLL_K
    encoder: float  # relative cost of inferring the posterior, a part of `whole`


@partial(jax.jit, static_argnames=("gen", "post"))
def _encode(gen: Generator, post: Posterior, params: Params, batch: Batch, key: Array) -> Post:
    return infer(gen, post, params, batch, key).post


def cost_ratio(
    model: TextVAE,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
    repeats: int = 3,
    proposal: Proposal | None = None,
) -> Cost:
    """Cost of NLL_K relative to K bare decoder passes.

    Both are compiled first and timed alternately; the result uses medians.
    """
    score = partial(score_batch(model, k, chunk, proposal=proposal), params, batch, key)
    encode = partial(_encode, model.gen, model.metric_post, params, batch, key)
    bare = bare_passes(model, params, batch, key, k, chunk=chunk)
    times: dict[Callable[[], object], list[float]] = {score: [], encode: [], bare: []}
    for run in times:
        jax.block_until_ready(run())
    for _ in range(repeats):
        for run, seconds in times.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begin)
    whole, encoder, passes = (statistics.median(seconds) for seconds in times.values())
    return Cost(whole / passes, encoder / passes)
