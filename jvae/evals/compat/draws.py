"""Separate log-densities of single draws, because published estimators weight them differently."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import (
    Batch,
    Generator,
    Params,
    Posterior,
    Prior,
    TextVAE,
    example_keys,
    infer,
    per_example,
)
from jvae.evals.collect import collect
from jvae.evals.compat.shared import Draws
from jvae.latent.iw_bound import full_precision
from jvae.latent.kl import kl


def end_of_text(segment_bt: Int[Array, "b t"]) -> Bool[Array, "b t"]:
    """True at the last token of each example."""
    following_bt = jnp.pad(segment_bt, ((0, 0), (0, 1)))[:, 1:]
    return (segment_bt > 0) & (segment_bt != following_bt)


@partial(jax.jit, static_argnames=("gen", "prior", "post", "k", "chunk", "released"))
def _draw(
    gen: Generator,
    prior: Prior,
    post: Posterior,
    k: int,
    chunk: int,
    released: bool,
    params: Params,
    batch: Batch,
    key: Array,
) -> tuple[tuple[Array, Array, Array], Array | None]:
    cond, q, z_key = infer(gen, post, params, batch, key)
    ctx = gen.prepare(params, batch, cond=cond)
    kept_bt = ~end_of_text(batch.dec.segment_bt) if released else jnp.array(True)
    assert post.log_prob is not None  # the likelihood rejects other models
    log_q = post.log_prob

    def estimate(draw: Array) -> tuple[tuple[Array, Array, Array], Array | None]:
        z_egz = post.sample(params, q, example_keys(z_key, batch.id_e, draw[None]))[0]
        kl_egz = kl(params, post, q, z_egz, prior, cond).nats_egz
        if released:
            # The same noise, scaled by the log-variance.
            noise_egz = (z_egz - q.mean_egz) * jnp.exp(-0.5 * q.log_var_egz)
            z_egz = q.mean_egz + noise_egz * q.log_var_egz
        nats_bt = full_precision(gen.log_lik(params, ctx, z_egz))
        log_lik_e = per_example(jnp.where(kept_bt, nats_bt, 0.0), batch)
        log_prior_e = full_precision(prior.log_prob(params, z_egz, cond))
        densities = (log_lik_e, log_prior_e, full_precision(log_q(params, q, z_egz)))
        return densities, None if kl_egz is None else jnp.sum(full_precision(kl_egz), axis=2)

    found_ke, kl_keg = jax.lax.map(estimate, jnp.arange(k), batch_size=min(chunk, k))
    return found_ke, None if kl_keg is None else kl_keg[0]


def collect_draws(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
    released: bool = False,
) -> tuple[Draws, Float[np.ndarray, "e g"] | None]:
    """K draws of each sentence of `batches`, ordered by id, and the KL of each group of draw 0.

    Draw k equals that of `evaluate_likelihood` with the same key.

    Args:
      released: draw and score as the released AdaVAE code does: z = mean + noise * log-variance,
        with the end of the sentence not scored.
    Raises: DataError if a sentence occurs twice or there are none.
    """

    def parts() -> Iterable[tuple[Array, Any]]:
        run = partial(_draw, model.gen, model.prior, model.metric_post, k, chunk, released, params)
        for batch in batches:
            found_ke, kl_eg = run(batch, key)
            yield batch.id_e, (tuple(a.T for a in found_ke), kl_eg)

    _, (found_ek, kl_eg) = collect(parts())
    return Draws(*(a.T.astype(np.float64) for a in found_ek)), kl_eg
