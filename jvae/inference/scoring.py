"""Compiled passes of the text tools: latents, conditions, densities. One text per row."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import (
    Batch,
    Cond,
    Generator,
    Params,
    Posterior,
    Prior,
    Prompt,
    example_keys,
    infer,
)
from jvae.decode import DecodeConfig, decode
from jvae.latent.kl import kl

CHUNK = 8  # chains per sentence that run together


class TokenLogProbs(NamedTuple):
    """Log-probabilities of the tokens of one sentence, including its end."""

    tokens: list[str]
    nats: Float[np.ndarray, "t"]  # log p(token | tokens before, z)


class PosteriorStats(NamedTuple):
    """Diagonal Gaussian posteriors of sentences."""

    mean: Float[np.ndarray, "n g z"]
    std: Float[np.ndarray, "n g z"]
    kl: Float[np.ndarray, "n"]  # KL to the prior, in nats; one-draw estimate for a learned prior


@partial(jax.jit, static_argnames=("gen", "post", "chains"))
def means(
    gen: Generator,
    post: Posterior,
    chains: int | None,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
) -> Float[Array, "e g z"]:
    """Posterior means; for a sampler, the mean end point of `chains` chains."""
    cond = gen.condition(params, batch)

    def mean(key_e: Key[Array, "e"]) -> Array:
        return post.mean(params, post.encode(params, batch, cond=cond, key_e=key_e))

    key_e = example_keys(key, batch.id_e)
    if chains is None:
        return mean(key_e)
    key_re = jax.vmap(lambda r: jax.vmap(lambda key: jax.random.fold_in(key, r))(key_e))(
        jnp.arange(chains)
    )
    return jnp.mean(jax.lax.map(mean, key_re, batch_size=min(CHUNK, chains)), axis=0)


@partial(jax.jit, static_argnames=("gen", "post", "samples"))
def draws(
    gen: Generator,
    post: Posterior,
    samples: int,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
) -> Float[Array, "e k g z"]:
    """Draws from the posterior of each example; for a sampler, end points of independent chains."""
    if post.sampler is None:
        _, q, z_key = infer(gen, post, params, batch, key)
        key_ke = example_keys(z_key, batch.id_e, jnp.arange(samples))
        return jnp.moveaxis(post.sample(params, q, key_ke), 0, 1)

    def end(number: Int[Array, ""]) -> Float[Array, "e g z"]:
        _, q, z_key = infer(gen, post, params, batch, jax.random.fold_in(key, number))
        return post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(1)))[0]

    return jnp.moveaxis(jax.lax.map(end, jnp.arange(samples)), 0, 1)


@partial(jax.jit, static_argnames=("gen", "prior", "post"))
def stats(
    gen: Generator,
    prior: Prior,
    post: Posterior,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
) -> Float[Array, "e f"]:
    """Means, standard deviations and KL to the prior of Gaussian posteriors, a row per example."""
    cond, q, z_key = infer(gen, post, params, batch, key)
    (z_egz,) = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(1)))
    kl_e = kl(params, post, q, z_egz, prior, cond).nats_e
    std_egz, rows = jnp.exp(0.5 * q.log_var_egz), len(kl_e)
    parts = [q.mean_egz.reshape(rows, -1), std_egz.reshape(rows, -1), kl_e[:, None]]
    return jnp.concatenate(parts, 1).astype(jnp.float32)


@partial(jax.jit, static_argnames=("gen",))
def condition(gen: Generator, params: Params, batch: Batch) -> Cond:
    """The decoder's condition for each source."""
    return gen.condition(params, batch)


@partial(jax.jit, static_argnames=("prior",))
def prior(
    prior: Prior, params: Params, key: Key[Array, ""], id_e: Int[Array, "e"], cond: Cond | None
) -> Float[Array, "e g z"]:
    """A draw from the prior for each id."""
    return prior.sample(params, example_keys(key, id_e), cond)


@partial(jax.jit, static_argnames=("gen", "config", "end_id", "pad_id"))
def written(
    gen: Generator,
    params: Params,
    z_egz: Float[Array, "e g z"],
    prompt: Prompt,
    key_e: Key[Array, "e"] | None,
    config: DecodeConfig,
    *,
    end_id: int,
    pad_id: int,
    cond: Cond | None,
) -> tuple[Int[Array, "e t"], Bool[Array, "e"]]:
    """Decodes latents to tokens; also returns whether each sentence has ended.

    The probabilities that `decode` also returns are dropped here, inside the compiled function, so
    that the compiler can remove them: they cost a pass over the vocabulary.
    """
    out = decode(gen, params, z_egz, prompt, key_e, config, end_id=end_id, pad_id=pad_id, cond=cond)
    return out.token_et, out.ended_e


@partial(jax.jit, static_argnames=("gen",))
def token_nats(
    gen: Generator, params: Params, batch: Batch, z_egz: Float[Array, "e g z"]
) -> Float[Array, "b t"]:
    """log p of each scored token at its position in `dec`, in nats; 0 elsewhere."""
    ctx = gen.prepare(params, batch, cond=gen.condition(params, batch))
    return gen.log_lik(params, ctx, z_egz)


keys = jax.jit(example_keys)
