"""Likelihood of sentences: importance-weighted bounds, their parts, perplexities, cost."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

from jvae.api import (
    Batch,
    Context,
    Generator,
    Params,
    Posterior,
    TextVAE,
    example_keys,
    per_example,
)
from jvae.evals.collect import collect, mean_se
from jvae.latent.mixture import Proposal

CURVE = (1, 10, 100, 500, 1000, 5000)  # K of the points of an NLL-vs-K curve, as far as K goes
LOOSE_ESS = 5.0  # below this effective sample size the bound is called loose


class Scores(NamedTuple):
    """What K draws say about each example, in nats; meaningless at empty slots.

    Draws come from the posterior q or from a proposal; means under q of draws from a proposal are
    weighted by q over its density.
    """

    nll_e: Float[Array, "e"]  # -log (1/K) sum_k p(x, z_k) / q(z_k | x), or over the proposal
    rec_e: Float[Array, "e"]  # mean under q of -log p(x | z_k)
    kl_e: Float[Array, "e"]  # KL(q(z | x) || p(z)) by the same draws
    ess_e: Float[Array, "e"]  # (sum w)^2 / sum w^2, between 1 and K
    scored_e: Int[Array, "e"]  # scored tokens, end included
    bound_e: dict[
        int, Float[Array, "e"]
    ]  # nll_e had only the first k draws been made, for each k named


class TextCounts(NamedTuple):
    """Size of each sentence of a split, by example id, the end of the sentence not counted."""

    words_e: Int[np.ndarray, "e"]
    chars_e: Int[np.ndarray, "e"]


def text_counts(lines: Sequence[str]) -> TextCounts:
    """Whitespace words and Unicode code points of each raw line, without its newline."""
    lines = [line.rstrip("\r\n") for line in lines]
    return TextCounts(
        words_e=np.array([len(line.split()) for line in lines], np.int64),
        chars_e=np.array([len(line) for line in lines], np.int64),
    )


class _Sums(NamedTuple):
    """Running sums over draws; weights stay in log space, where none overflows or vanishes."""

    log_w_ke: Array  # log sum of the weights of the first k draws, one row per bound
    log_w2_e: Array  # log sum of all squared weights
    log_u_e: Array  # log sum of the weights of means under q
    rec_e: Array  # such means of the draws so far
    kl_e: Array


def has_latent(model: TextVAE) -> bool:
    """False for a language model, whose z is empty."""
    return model.latent_shape[0] * model.latent_shape[1] > 0


def wide(x: Array) -> Array:
    """Float32, or float64 where JAX runs with it: sums over tokens and draws need the digits."""
    return x.astype(jnp.result_type(float))


def nll_of(
    gen: Generator, params: Params, ctx: Context, batch: Batch, z_egz: Float[Array, "e g z"]
) -> Float[Array, "e"]:
    """-log p(x | z) of each example, in nats."""
    return -per_example(wide(gen.log_lik(params, ctx, z_egz)), batch)


def over_draws(add: Callable[[Any, Array], Any], start: Any, k: int, chunk: int) -> Any:
    """Folds draws 0..k-1 into `start`, `chunk` at a time: add(sums, draw_k) -> sums.

    The last, shorter chunk is a second trace of `add`; a chunk that divides k avoids it.
    """
    chunk = min(chunk, k)
    full = k // chunk

    def body(sums: Any, first: Array) -> tuple[Any, None]:
        return add(sums, first + jnp.arange(chunk)), None

    sums, _ = jax.lax.scan(body, start, jnp.arange(full) * chunk)
    return add(sums, jnp.arange(full * chunk, k)) if full * chunk < k else sums


@partial(jax.jit, static_argnames=("gen", "post", "proposal", "k", "chunk", "bounds"))
def _score(
    gen: Generator,
    post: Posterior,
    proposal: Proposal | None,
    k: int,
    chunk: int,
    bounds: tuple[int, ...],
    params: Params,
    batch: Batch,
    key: Array,
) -> Scores:
    chain_key, z_key = jax.random.split(key)
    cond = gen.condition(params, batch)
    q = post.encode(params, batch, cond=cond, key_e=example_keys(chain_key, batch.id_e))
    ctx = gen.prepare(params, batch, cond=cond)
    assert post.log_q is not None  # score_batch has refused the model otherwise
    log_q = post.log_q

    def log_densities(z_egz: Array) -> tuple[Array, Array, Array, Array]:
        log_q_e = wide(log_q(params, q, z_egz))
        log_drawn_e = log_q_e
        if proposal is not None:
            log_drawn_e = wide(proposal.log_density(params, q, z_egz, cond))
        nll_e = nll_of(gen, params, ctx, batch, z_egz)
        return nll_e, wide(gen.log_prior(params, z_egz, cond)), log_q_e, log_drawn_e

    def add(sums: _Sums, draw_k: Array) -> _Sums:
        key_ke = example_keys(z_key, batch.id_e, draw_k)
        z_kegz, kl_kegz = post.sample(params, q, key_ke)
        if proposal is not None:
            z_kegz = proposal.sample(params, q, key_ke, cond)
        nll_ke, log_p_ke, log_q_ke, log_drawn_ke = jax.vmap(log_densities)(z_kegz)
        log_w_ke = log_p_ke - nll_ke - log_drawn_ke
        log_u_ke = log_q_ke - log_drawn_ke
        log_u_e = jnp.logaddexp(sums.log_u_e, logsumexp(log_u_ke, axis=0))
        share_ke, kept_e = jnp.exp(log_u_ke - log_u_e[None]), jnp.exp(sums.log_u_e - log_u_e)
        kl_ke = log_q_ke - log_p_ke if kl_kegz is None else jnp.sum(kl_kegz, axis=(2, 3))
        # A bound sees the draws before its own K only: -inf is a draw that weighs nothing.
        early = jnp.asarray(bounds)[:, None, None] > draw_k[None, :, None]
        prefix_ke = logsumexp(jnp.where(early, log_w_ke[None], -jnp.inf), axis=1)
        return _Sums(
            log_w_ke=jnp.logaddexp(sums.log_w_ke, prefix_ke),
            log_w2_e=jnp.logaddexp(sums.log_w2_e, logsumexp(2 * log_w_ke, axis=0)),
            log_u_e=log_u_e,
            rec_e=kept_e * sums.rec_e + jnp.sum(share_ke * nll_ke, axis=0),
            kl_e=kept_e * sums.kl_e + jnp.sum(share_ke * wide(kl_ke), axis=0),
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
    bound_ke = jnp.log(wide(jnp.asarray(bounds)))[:, None] - sums.log_w_ke
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
    """The compiled function (params, batch, key) -> Scores, from K draws per example.

    The encoder and all of the decoder that does not read z run once; memory grows with `chunk`, not
    with K. Draw k of example i depends on (key, i, k) only. A model without a latent makes one
    pass, which is exact for every K.

    Args:
      chunk: draws decoded together.
      bounds: also record the bound after this many draws; those above K are left out, 1 and K
        always in.
      proposal: where draws come from in place of the posterior; Rec and KL stay those of the
        posterior.
    Raises: ValueError if k or chunk is below 1, or `model.metric_post` has no density.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"score_batch: k={k}, chunk={chunk}. Expected both to be at least 1.")
    if model.metric_post.log_q is None:
        raise ValueError(
            "score_batch: model.metric_post.log_q is None. A likelihood bound needs the density "
            "of its draws; give the model a metric_post with one, such as a Gaussian fitted to the "
            "sampler's end points."
        )
    points = tuple(sorted({1, k, *(bound for bound in bounds if 1 <= bound < k)}))
    latent = has_latent(model)
    scorer = partial(
        _score,
        model.gen,
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


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """Scores of every sentence of a set, ordered by id, on the host."""

    k: int
    latent: bool  # False: z is empty, the NLL is exact and the KL 0
    id_e: np.ndarray
    scores: Scores  # of NumPy arrays

    def by_sentence(self) -> list[dict[str, Any]]:
        """Each sentence's place in its split (from 0), scored tokens, and nats: what two models
        differ by is told far better by their differences on the same sentences than by two means.
        """
        s = self.scores
        named = {"sentence": self.id_e, "tokens": s.scored_e}
        nats = {f"nll_{self.k}": s.nll_e, "rec": s.rec_e, "kl": s.kl_e}
        if not self.latent:
            nats = {"nll": s.nll_e}
        columns = {name: np.asarray(one).tolist() for name, one in named.items()} | {
            name: np.round(np.asarray(one, np.float64), 5).tolist() for name, one in nats.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def summary(self, counts: TextCounts | None = None) -> dict[str, Any]:
        """Means over sentences, standard errors (`_se`), perplexities; None where undefined.

        Args:
          counts: sizes by example id; without them `ppl_w` and `bpc` are None.
        """
        s = self.scores
        neg_elbo_e = np.asarray(s.rec_e, np.float64) + np.asarray(s.kl_e, np.float64)
        row: dict[str, Any] = {"sentences": int(self.id_e.size), "k": self.k}
        for name, value_e in (
            ("rec_nats", s.rec_e),
            ("kl_nats", s.kl_e),
            ("neg_elbo_nats", neg_elbo_e),
            ("nll_nats", s.nll_e),
        ):
            row[name], row[f"{name}_se"] = mean_se(value_e)
        row["ess"] = mean_se(s.ess_e)[0] if self.latent else None
        row["loose"] = row["ess"] is not None and row["ess"] < LOOSE_ESS and self.k > 1
        row["nll_nats_at"] = {k: mean_se(value_e)[0] for k, value_e in s.bound_e.items()}
        row["tokens_with_end"] = int(s.scored_e.sum())
        row["words_with_end"] = row["chars_with_end"] = None
        if counts is not None:
            row["words_with_end"] = int(counts.words_e[self.id_e].sum() + self.id_e.size)
            row["chars_with_end"] = int(counts.chars_e[self.id_e].sum() + self.id_e.size)
        total = float(np.sum(s.nll_e, dtype=np.float64))
        row["ppl_w"] = _exp(total, row["words_with_end"])
        row["ppl_t"] = _exp(total, row["tokens_with_end"])
        chars = row["chars_with_end"]
        row["bpc"] = total / (float(np.log(2.0)) * chars) if chars else None
        return row


def _exp(total_nats: float, count: int | None) -> float | None:
    with np.errstate(over="ignore"):
        return float(np.exp(total_nats / count)) if count else None


def evaluate_likelihood(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
    bounds: Sequence[int] = CURVE,
    proposal: Proposal | None = None,
) -> LikelihoodResult:
    """Scores each sentence of `batches` once with K draws; see `score_batch` for the arguments.

    Raises: ValueError as `score_batch`; DataError if a sentence comes twice or none comes.
    """
    score = score_batch(model, k, chunk, bounds, proposal)
    id_e, scores = collect((batch.id_e, score(params, batch, key)) for batch in batches)
    return LikelihoodResult(k=k, latent=has_latent(model), id_e=id_e, scores=scores)


class Excess(NamedTuple):
    """NLL_K minus the exact -log p of the same sentences; below 0 by chance only."""

    mean_nats: float
    se_nats: float | None
    suspicious: (
        bool  # more than 4 standard errors below 0: the model leaks its target or counts wrongly
    )


def excess_over_exact(
    result: LikelihoodResult, exact_e: Float[np.ndarray, "n"]
) -> dict[int, Excess]:
    """The excess at each K recorded.

    Args:
      exact_e: -log p of each sentence of the split under the distribution it was drawn from, by
        example id, in nats.
    """
    found = {}
    for k, bound_e in result.scores.bound_e.items():
        mean, se = mean_se(np.asarray(bound_e, np.float64) - np.asarray(exact_e)[result.id_e])
        found[k] = Excess(mean, se, se is not None and mean < -4 * se)
    return found


def draw_sentences(available: int, wanted: int, seed: int = 0) -> Int[np.ndarray, "n"]:
    """Ids of at most `wanted` sentences of a split, ascending: by seed alone, not by model."""
    order = np.random.default_rng(seed).permutation(available)
    return np.sort(order[: min(wanted, available)])


@partial(jax.jit, static_argnames=("gen", "post", "k"))
def _ready(
    gen: Generator, post: Posterior, k: int, params: Params, batch: Batch, key: Array
) -> tuple[Context, Array]:
    chain_key, z_key = jax.random.split(key)
    cond = gen.condition(params, batch)
    q = post.encode(params, batch, cond=cond, key_e=example_keys(chain_key, batch.id_e))
    z_kegz, _ = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(k)))
    return gen.prepare(params, batch, cond=cond), z_kegz


@partial(jax.jit, static_argnames=("gen", "chunk"))
def _decoder_passes(
    gen: Generator, chunk: int, params: Params, ctx: Context, batch: Batch, z_kegz: Array
) -> Array:
    def one(z_egz: Array) -> Array:
        return nll_of(gen, params, ctx, batch, z_egz)

    return jax.lax.map(one, z_kegz, batch_size=min(chunk, len(z_kegz)))


def bare_passes(
    model: TextVAE,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    k: int,
    *,
    chunk: int = 1,
) -> Callable[[], Array]:
    """K decoder passes over a batch, each with its own latent, and nothing else: a compiled call.

    What does not depend on z, and the latents, are made here and not in the call, so whatever is
    compared with it is not flattered.
    """
    k = k if has_latent(model) else 1
    ctx, z_kegz = _ready(model.gen, model.metric_post, k, params, batch, key)
    return partial(_decoder_passes, model.gen, chunk, params, ctx, batch, z_kegz)


class Cost(NamedTuple):
    """Times over that of K bare decoder passes on the same batch."""

    whole: float  # of NLL_K
    encoder: float  # of what infers the posterior, which is part of it


@partial(jax.jit, static_argnames=("gen", "post"))
def _encode(gen: Generator, post: Posterior, params: Params, batch: Batch, key: Array) -> Any:
    chain_key, _ = jax.random.split(key)
    cond = gen.condition(params, batch)
    return post.encode(params, batch, cond=cond, key_e=example_keys(chain_key, batch.id_e))


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
    """Cost of NLL_K beside K bare decoder passes; medians, taken in turn, compiled before."""
    score = partial(score_batch(model, k, chunk, proposal=proposal), params, batch, key)
    encode = partial(_encode, model.gen, model.metric_post, params, batch, key)
    bare = bare_passes(model, params, batch, key, k, chunk=chunk)
    times: dict[Callable[[], Any], list[float]] = {score: [], encode: [], bare: []}
    for run in times:
        jax.block_until_ready(run())
    for _ in range(repeats):
        for run, seconds in times.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begin)
    whole, encoder, passes = (statistics.median(seconds) for seconds in times.values())
    return Cost(whole / passes, encoder / passes)


def spot_row(found: LikelihoodResult, fewer: int) -> dict[str, Any]:
    """Arguments of `Report.add` for many draws on few sentences.

    Args:
      fewer: the K of the main result, a point of this one's curve: what a larger K gains.
    """
    s = found.summary()
    less = s["nll_nats_at"].get(fewer)
    note = f"{s['sentences']} sentences"
    note += "" if less is None else f"; with K = {fewer} these have {less:.2f}"
    nats, se = s["nll_nats"], s["nll_nats_se"]
    return dict(name=f"nll_{found.k}", value=nats, unit="nats/sentence", se=se, note=note)
