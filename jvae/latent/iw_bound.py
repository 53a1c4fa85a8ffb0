"""Importance-weighted bounds on -log p(x) and their components, accumulated over draws."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

from jvae.api import (
    Batch,
    Context,
    Generator,
    Params,
    Posterior,
    Prior,
    Proposal,
    TextVAE,
    example_keys,
    has_latent,
    infer,
    per_example,
)
from jvae.latent.kl import kl

CURVE = (1, 10, 100, 500, 1000, 5000)  # values of K on an NLL-vs-K curve, up to the largest K


class Scores(NamedTuple):
    """Per-example estimates from K draws, in nats; meaningless at empty slots.

    Draws come from the posterior q or from a proposal. With a proposal, means under q are
    importance-weighted by q over the proposal density.
    """

    nll_e: Float[Array, "e"]  # -log (1/K) sum_k p(x, z_k) / q(z_k | x), or over the proposal
    rec_e: Float[Array, "e"]  # mean under q of -log p(x | z_k)
    kl_e: Float[Array, "e"]  # KL(q(z | x) || p(z)), estimated from the same draws
    ess_e: Float[Array, "e"]  # (sum w)^2 / sum w^2, between 1 and K
    scored_e: Int[Array, "e"]  # scored tokens, end included
    bound_e: dict[int, Float[Array, "e"]]  # nll_e of the first k draws alone, by k


class _Sums(NamedTuple):
    """Running sums over draws; weights stay in log space to avoid overflow and underflow."""

    log_w_ke: Array  # log sum of the weights of the first k draws, one row per bound
    log_w2_e: Array  # log sum of all squared weights
    log_u_e: Array  # log sum of the weights that means under q use
    rec_e: Array  # running mean under q, as is kl_e
    kl_e: Array


def full_precision(x: Array) -> Array:
    """Casts to float32, or to float64 if JAX has it enabled, for sums over tokens and draws."""
    return x.astype(jnp.result_type(float))


def nll_of(
    gen: Generator, params: Params, ctx: Context, batch: Batch, z_egz: Float[Array, "e g z"]
) -> Float[Array, "e"]:
    """-log p(x | z) of each example, in nats."""
    return -per_example(full_precision(gen.log_lik(params, ctx, z_egz)), batch)


def over_draws(add: Callable[[Any, Array], Any], start: Any, k: int, chunk: int) -> Any:
    """Folds draws 0..k-1 into `start`, `chunk` at a time: add(sums, draw_k) -> sums.

    If `chunk` does not divide k, `add` is traced a second time for the shorter last chunk.
    """
    chunk = min(chunk, k)
    full = k // chunk

    def body(sums: Any, first: Array) -> tuple[Any, None]:
        return add(sums, first + jnp.arange(chunk)), None

    sums, _ = jax.lax.scan(body, start, jnp.arange(full) * chunk)
    return add(sums, jnp.arange(full * chunk, k)) if full * chunk < k else sums


@partial(jax.jit, static_argnames=("gen", "prior", "post", "proposal", "k", "chunk", "bounds"))
def _score(
    gen: Generator,
    prior: Prior,
    post: Posterior,
    proposal: Proposal | None,
    k: int,
    chunk: int,
    bounds: tuple[int, ...],
    params: Params,
    batch: Batch,
    key: Array,
) -> Scores:
    cond, q, z_key = infer(gen, post, params, batch, key)
    ctx = gen.prepare(params, batch, cond=cond)
    assert post.log_prob is not None  # checked in score_batch
    log_q = post.log_prob

    def log_densities(z_egz: Array) -> tuple[Array, Array, Array, Array]:
        log_q_e = full_precision(log_q(params, q, z_egz))
        log_drawn_e = log_q_e
        if proposal is not None:
            log_drawn_e = full_precision(proposal.log_prob(params, q, z_egz, cond))
        nll_e = nll_of(gen, params, ctx, batch, z_egz)
        return nll_e, full_precision(prior.log_prob(params, z_egz, cond)), log_q_e, log_drawn_e

    def add(sums: _Sums, draw_k: Array) -> _Sums:
        key_ke = example_keys(z_key, batch.id_e, draw_k)
        if proposal is None:
            z_kegz = post.sample(params, q, key_ke)
        else:
            z_kegz = proposal.sample(params, q, key_ke, cond)
        kl_ke = jax.vmap(lambda z_egz: kl(params, post, q, z_egz, prior, cond).nats_e)(z_kegz)
        nll_ke, log_p_ke, log_q_ke, log_drawn_ke = jax.vmap(log_densities)(z_kegz)
        log_w_ke = log_p_ke - nll_ke - log_drawn_ke
        log_u_ke = log_q_ke - log_drawn_ke
        log_u_e = jnp.logaddexp(sums.log_u_e, logsumexp(log_u_ke, axis=0))
        share_ke, kept_e = jnp.exp(log_u_ke - log_u_e[None]), jnp.exp(sums.log_u_e - log_u_e)
        # A bound uses only the draws before its own K; -inf gives the others weight 0.
        early = jnp.asarray(bounds)[:, None, None] > draw_k[None, :, None]
        prefix_ke = logsumexp(jnp.where(early, log_w_ke[None], -jnp.inf), axis=1)
        return _Sums(
            log_w_ke=jnp.logaddexp(sums.log_w_ke, prefix_ke),
            log_w2_e=jnp.logaddexp(sums.log_w2_e, logsumexp(2 * log_w_ke, axis=0)),
            log_u_e=log_u_e,
            rec_e=kept_e * sums.rec_e + jnp.sum(share_ke * nll_ke, axis=0),
            kl_e=kept_e * sums.kl_e + jnp.sum(share_ke * full_precision(kl_ke), axis=0),
        )

    nothing_e = jnp.full(batch.id_e.shape, -jnp.inf, jnp.result_type(float))
    start = _Sums(
        log_w_ke=jnp.tile(nothing_e, (len(bounds), 1)),
        log_w2_e=nothing_e,
        log_u_e=nothing_e,
        rec_e=jnp.zeros_like(nothing_e),
        kl_e=jnp.zeros_like(nothing_e),
    )
    sums = over_draws(add, start, k, chunk)
    bound_ke = jnp.log(full_precision(jnp.asarray(bounds)))[:, None] - sums.log_w_ke
    last = bounds.index(k)
    return Scores(
        nll_e=bound_ke[last],
        rec_e=sums.rec_e,
        kl_e=sums.kl_e,
        ess_e=jnp.exp(2 * sums.log_w_ke[last] - sums.log_w2_e),
        scored_e=per_example(batch.scored_bt.astype(jnp.float32), batch).astype(jnp.int32),
        bound_e={bound: bound_ke[i] for i, bound in enumerate(bounds)},
    )


def score_batch(
    model: TextVAE,
    k: int,
    chunk: int = 1,
    bounds: Sequence[int] = CURVE,
    proposal: Proposal | None = None,
) -> Callable[[Params, Batch, Key[Array, ""]], Scores]:
    """Returns a compiled function (params, batch, key) -> Scores that uses K draws per example.

    The encoder and the z-independent part of the decoder run once; memory grows with `chunk`, not
    with K. Draw k of example i depends only on (key, i, k). A model without a latent needs one
    pass, which is exact for any K.

    Args:
      chunk: draws decoded together.
      bounds: also record the bound after these numbers of draws; numbers above K are dropped, and
        1 and K are always included.
      proposal: draw from it instead of the posterior; Rec and KL remain those of the posterior.
    Raises: ValueError if k or chunk is below 1, or `model.metric_post` has no density.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"score_batch: k={k}, chunk={chunk}. Expected both to be at least 1.")
    if model.metric_post.log_prob is None:
        raise ValueError(
            "score_batch: the model's metric posterior has no density, which a likelihood bound "
            "needs; give the model a posterior for metrics with one, such as a Gaussian fitted to "
            "the sampler's end points."
        )
    points = tuple(sorted({1, k, *(bound for bound in bounds if 1 <= bound < k)}))
    latent = has_latent(model)
    scorer = partial(
        _score,
        model.gen,
        model.prior,
        model.metric_post,
        proposal,
        k if latent else 1,
        chunk,
        points if latent else (1,),
    )

    def score(params: Params, batch: Batch, key: Array) -> Scores:
        scores = scorer(params, batch, key)
        return scores if latent else scores._replace(bound_e=dict.fromkeys(points, scores.nll_e))

    return score
