"""Use of the latent: mutual information, active units, KL profile, loss with the wrong latent."""

import dataclasses
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

from jvae.api import (
    Batch,
    Generator,
    Params,
    Post,
    Posterior,
    Prior,
    TextVAE,
    example_keys,
    has_latent,
    infer,
)
from jvae.errors import DataError
from jvae.evals.collect import collect, mean_se, rows_of, to_host
from jvae.evals.likelihood import LikelihoodResult
from jvae.latent.gaussian import DiagonalGaussian
from jvae.latent.iw_bound import full_precision, nll_of, over_draws
from jvae.latent.kl import kl

CAP = 10_000  # use at most this many sentences of a set
THRESHOLDS = (0.01, 0.2)  # variance above which a unit is active
SATURATION_NATS = 0.3  # closer than this to ln N, a mutual information is only a lower bound
COLLAPSE_NATS = 0.1  # closer than this to its reference, a metric counts as evidence of collapse,
COLLAPSE_ERRORS = 2.0  # or closer than this many standard errors


class PosteriorSet(NamedTuple):
    """The posterior of every sentence of a set, by id, on the host, with one draw (draw 0)."""

    id_e: Int[np.ndarray, "e"]
    post: Post  # the model's own posterior, every leaf with leading axis E
    mean_egz: Float[np.ndarray, "e g z"]
    z_egz: Float[np.ndarray, "e g z"]
    log_q_e: Float[np.ndarray, "e"]  # log-density of the draw under its own posterior
    kl_e: Float[np.ndarray, "e"]
    kl_egz: Float[np.ndarray, "e g z"] | None  # None if the KL has no closed form
    conditional: bool = False  # whether prior and posterior also depend on a source text

    def other(self, seed: int = 0) -> Int[np.ndarray, "e"]:
        """For each sentence the index of another: one random cycle, so none is paired with itself.

        Raises: DataError if there are fewer than two sentences.
        """
        count = self.id_e.size
        if count < 2:
            raise DataError(
                f"evaluation: {count} sentence. Comparing with another sentence's latent needs at "
                "least 2; use a larger set."
            )
        order = np.random.default_rng(seed).permutation(count)
        place = np.empty(count, np.int64)
        place[order] = np.roll(order, 1)
        return place


@partial(jax.jit, static_argnames=("gen", "prior", "post"))
def _infer(
    gen: Generator, prior: Prior, post: Posterior, params: Params, batch: Batch, key: Array
) -> dict[str, Any]:
    cond, q, z_key = infer(gen, post, params, batch, key)
    z_egz = post.sample(params, q, example_keys(z_key, batch.id_e, jnp.arange(1)))[0]
    assert post.log_prob is not None  # collect_posteriors rejects other models
    nats = kl(params, post, q, z_egz, prior, cond)
    return {
        "post": q,
        "mean_egz": full_precision(post.mean(params, q)),
        "z_egz": full_precision(z_egz),
        "log_q_e": full_precision(post.log_prob(params, q, z_egz)),
        "kl_e": full_precision(nats.nats_e),
        "kl_egz": None if nats.nats_egz is None else full_precision(nats.nats_egz),
    }


def collect_posteriors(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    key: Key[Array, ""],
    cap: int = CAP,
) -> PosteriorSet:
    """Runs the encoder once over `batches`; keeps the `cap` sentences with the lowest ids.

    Raises: ValueError if `model.metric_post` has no density; DataError if a sentence occurs twice
    or there are none.
    """
    if model.metric_post.log_prob is None:
        raise ValueError(
            "collect_posteriors: the model's metric posterior has no density. "
            "Mutual information needs a posterior density."
        )
    conditional = False

    def inferred() -> Iterable[tuple[Array, dict[str, Any]]]:
        nonlocal conditional
        for batch in batches:
            conditional = batch.cond is not None
            q = _infer(model.gen, model.prior, model.metric_post, params, batch, key)
            yield batch.id_e, q

    id_e, leaves = collect(inferred())
    kept = jax.tree.map(lambda leaf: leaf[:cap], leaves)
    return PosteriorSet(id_e=id_e[:cap], **kept, conditional=conditional)


def _take(tree: Any, place: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


@partial(jax.jit, static_argnames=("post",))
def _log_q_sum(
    post: Posterior, params: Params, q: Post, valid_e: Array, z_begz: Array
) -> Float[Array, "b i"]:
    """log sum_j q(z_i | x_j) over one block of posteriors, for blocks of draws."""
    assert post.log_prob is not None
    log_q = post.log_prob

    def log_mixture(z_gz: Array) -> Array:
        # One posterior at a time: work that depends on z alone is then done once per draw.
        def of(q_one: Post) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], q_one)
            return log_q(params, alone, z_gz[None])[0]

        return logsumexp(jnp.where(valid_e, full_precision(jax.vmap(of)(q)), -jnp.inf))

    return jax.lax.map(jax.vmap(log_mixture), z_begz)


def log_aggregate(
    model: TextVAE, params: Params, posts: PosteriorSet, block: int = 256, draws: int = 64
) -> Float[np.ndarray, "e"]:
    """log (1/N) sum_j q(z_i | x_j) of each draw under all posteriors, its own included.

    Compiled once. The device holds at most `block` posteriors and their densities at `draws` draws
    at a time.
    """
    count = posts.id_e.size
    block, draws = min(block, count), min(draws, count)
    padded = np.minimum(np.arange(-(-count // draws) * draws), count - 1)
    z_begz = posts.z_egz[padded].reshape(-1, draws, *posts.z_egz.shape[1:])
    total_e = np.full(count, -np.inf)
    for first in range(0, count, block):
        place = np.arange(first, first + block)
        q = _take(posts.post, np.minimum(place, count - 1))
        part = _log_q_sum(model.metric_post, params, q, place < count, z_begz)
        total_e = np.logaddexp(total_e, to_host(part).astype(np.float64).reshape(-1)[:count])
    return total_e - np.log(count)


def gaussian_entropy(posterior: Posterior, post: Post) -> Float[np.ndarray, "e"] | None:
    """Entropy in nats of posteriors that are one diagonal Gaussian each; None for others.

    Only for published estimators of mutual information (`jvae.evals.compat`). If the entropy is
    exact but the aggregate uses draws, the estimate has a spread of sqrt(D / 2N) at collapse; with
    the same draws for both terms it has none. Layer-wise posteriors are Gaussian only given their
    earlier groups, hence None.
    """
    if not isinstance(posterior.form, DiagonalGaussian):
        return None
    log_var_egz = np.asarray(post.log_var_egz, np.float64)
    return 0.5 * np.sum(1 + np.log(2 * np.pi) + log_var_egz, axis=(1, 2))


def unit_covariance(
    mean_egz: Float[np.ndarray, "e g z"], other_egz: Float[np.ndarray, "e g z"] | None = None
) -> Float[np.ndarray, "g z"]:
    """Variance over sentences of each posterior mean (N - 1 in the denominator), float64.

    Args:
      other_egz: means from a second, independent set of chains; the covariance with them excludes
        noise that does not depend on the sentence.
    Raises: DataError if there are fewer than two sentences.
    """
    if mean_egz.shape[0] < 2:
        raise DataError("evaluation: a variance over sentences needs at least 2; use a larger set.")
    a = np.asarray(mean_egz, np.float64)
    b = a if other_egz is None else np.asarray(other_egz, np.float64)
    return np.sum((a - a.mean(0)) * (b - b.mean(0)), axis=0) / (a.shape[0] - 1)


def paired_means(post: Post) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Means of two independent sets of chains per sentence; (None, None) for an encoder."""
    return getattr(post, "mean_a_egz", None), getattr(post, "mean_b_egz", None)


@dataclasses.dataclass(frozen=True)
class LatentResult:
    """Latent metrics of a set of sentences, in nats unless they are counts."""

    sentences: int
    units: int  # total number of latent dimensions
    kl_nats: float
    kl_nats_se: float | None
    mi_nats: float
    mi_nats_se: float | None  # standard error of the mean over sentences, for a fixed aggregate
    ceiling_nats: float  # ln N, which the mutual information cannot exceed
    active: dict[float, int]  # number of active units by threshold
    active_per_group: dict[float, list[int]]
    variance_gz: np.ndarray
    kl_profile_gz: np.ndarray | None  # mean KL of each dimension; None if the KL has no closed form
    groups: str = "layer"  # what the latent's groups are, see `jvae.api.TextVAE`
    conditional: bool = False  # the mutual information is then with sentence and source

    @property
    def saturated(self) -> bool:
        """Whether the true mutual information may exceed the value, which is then a lower bound."""
        return self.mi_nats > self.ceiling_nats - SATURATION_NATS

    @property
    def marginal_gap_nats(self) -> float | None:
        """KL(q(z) || p(z)): the mean KL less the mutual information; None if every source has its
        own prior instead of p(z).
        """
        return None if self.conditional else self.kl_nats - self.mi_nats

    @property
    def kl_profile_sorted(self) -> list[float] | None:
        """Mean KL of all dimensions, largest first."""
        return (
            None
            if self.kl_profile_gz is None
            else np.sort(self.kl_profile_gz.ravel())[::-1].tolist()
        )

    @property
    def kl_per_group(self) -> list[float] | None:
        """Mean KL of each latent group."""
        return None if self.kl_profile_gz is None else self.kl_profile_gz.sum(axis=1).tolist()


def latent_metrics(
    model: TextVAE, params: Params, posts: PosteriorSet, block: int = 256, draws: int = 64
) -> LatentResult | None:
    """Mutual information over the set, active units and KL profile; None without a latent.

    Mutual information is the mean of log q(z_i|x_i) - log q(z_i) at one draw per sentence. Both
    terms use the same draw, so if all posteriors are equal it is 0 for every draw.

    The baseline is the same function applied to the posteriors of untrained parameters, or to
    chains with zero steps. A sampler's active units are those on which both sets of chains agree.

    Args:
      block, draws: posteriors and draws compared at a time; these affect memory, not the result.
    """
    if not has_latent(model):
        return None
    log_q_e = posts.log_q_e.astype(np.float64)
    mi, mi_se = mean_se(log_q_e - log_aggregate(model, params, posts, block, draws))
    kl_nats, kl_se = mean_se(posts.kl_e)
    a_egz, b_egz = paired_means(posts.post)
    variance_gz = unit_covariance(posts.mean_egz if a_egz is None else a_egz, b_egz)
    per_group = {limit: np.sum(variance_gz > limit, axis=1).tolist() for limit in THRESHOLDS}
    profile_gz = None if posts.kl_egz is None else posts.kl_egz.astype(np.float64).mean(axis=0)
    return LatentResult(
        sentences=posts.id_e.size,
        units=variance_gz.size,
        kl_nats=kl_nats,
        kl_nats_se=kl_se,
        mi_nats=mi,
        mi_nats_se=mi_se,
        ceiling_nats=float(np.log(posts.id_e.size)),
        active={limit: sum(counts) for limit, counts in per_group.items()},
        active_per_group=per_group,
        variance_gz=variance_gz,
        kl_profile_gz=profile_gz,
        groups=model.groups,
        conditional=posts.conditional,
    )


@partial(jax.jit, static_argnames=("gen", "post", "k", "chunk"))
def _rec_with(
    gen: Generator,
    post: Posterior,
    k: int,
    chunk: int,
    params: Params,
    batch: Batch,
    q: Post,
    id_e: Array,
    key: Array,
) -> Float[Array, "e"]:
    """Mean -log p(x | z_k) for draws from `q`, made with the keys of the example ids `id_e`."""
    _, z_key = jax.random.split(key)
    ctx = gen.prepare(params, batch, cond=gen.condition(params, batch))

    def add(sum_e: Array, draw_k: Array) -> Array:
        z_kegz = post.sample(params, q, example_keys(z_key, id_e, draw_k))
        nll_ke = jax.vmap(lambda z_egz: nll_of(gen, params, ctx, batch, z_egz))(z_kegz)
        return sum_e + jnp.sum(nll_ke, axis=0)

    return over_draws(add, jnp.zeros(batch.id_e.shape, jnp.result_type(float)), k, chunk) / k


class RecGap(NamedTuple):
    """Rec with the latent of another sentence, and its excess over Rec; None without a latent."""

    rec_other_nats: float | None
    gap_nats: float | None
    gap_nats_se: float | None


def rec_gap(
    model: TextVAE,
    params: Params,
    batches: Iterable[Batch],
    posts: PosteriorSet,
    likelihood: LikelihoodResult,
    key: Key[Array, ""],
    *,
    k: int | None = None,
    chunk: int = 1,
) -> RecGap:
    """Rec with another sentence's z minus Rec, over the sentences of `batches`.

    Args:
      batches: the sentences of `likelihood` again.
      k: draws of the other sentence's latent; by default as many as in `likelihood`.
      posts: must include these sentences, inferred with the same key as `likelihood`.
    Raises: DataError if a sentence is missing from `posts` or `likelihood`, or there are fewer than
    two.
    """
    if not has_latent(model):
        return RecGap(None, None, None)
    other_e = posts.other()

    def parts() -> Iterable[tuple[np.ndarray, Array]]:
        for batch in batches:
            id_e = to_host(batch.id_e)
            place = other_e[_places(posts.id_e, id_e)]
            arguments = (params, batch, _take(posts.post, place), posts.id_e[place], key)
            draws = likelihood.k if k is None else k
            yield id_e, _rec_with(model.gen, model.metric_post, draws, chunk, *arguments)

    id_e, rec_other_e = collect(parts())
    rec_e = likelihood.scores.rec_e[rows_of(likelihood.id_e, id_e, "the likelihood's sentences")]
    gap, se = mean_se(rec_other_e.astype(np.float64) - rec_e)
    return RecGap(mean_se(rec_other_e)[0], gap, se)


def _places(known_e: np.ndarray, id_e: np.ndarray) -> np.ndarray:
    """Indices of a batch's ids; 0 for empty slots."""
    filled = np.where(id_e < 0, known_e[0], id_e)
    return rows_of(known_e, filled, "the collected posteriors")


def _margin(*errors: float | None) -> float:
    """How far above its reference an estimate must lie to count as above it, in nats."""
    return max(COLLAPSE_NATS, COLLAPSE_ERRORS * math.hypot(*(error or 0.0 for error in errors)))


def collapse_reasons(
    result: LatentResult, gap: RecGap | None = None, prior: LatentResult | None = None
) -> list[str]:
    """Reasons to consider the latent unused; empty if it is used. Training and evaluation share
    this rule; tables show the verdict of the evaluation.

    KL, MI and Rec gap must each exceed their reference by 0.1 nats and by two standard errors, so
    that noise cannot clear a model.

    Args:
      gap: None if it is not measured, as during training.
      prior: scores of a posterior equal to the prior under the same estimator; if None, its KL and
        MI are taken as 0.
    """
    reasons = []
    lowest = min(THRESHOLDS)
    if result.active[lowest] == 0:
        reasons.append(f"no unit is active at {lowest}")
    for name in ("kl", "mi"):
        value, error = getattr(result, f"{name}_nats"), getattr(result, f"{name}_nats_se")
        reference, spread = 0.0, None
        if prior is not None:
            reference, spread = getattr(prior, f"{name}_nats"), getattr(prior, f"{name}_nats_se")
        margin = _margin(error, spread)
        if not value - reference > margin:  # this form makes NaN a reason too
            reasons.append(f"{name.upper()} within {margin:.2g} nat of {reference:.2f}")
    if gap is not None and gap.gap_nats is not None:
        margin = _margin(gap.gap_nats_se)
        if not gap.gap_nats >= margin:
            reasons.append(f"another sentence's latent costs less than {margin:.2g} nat")
    return reasons
