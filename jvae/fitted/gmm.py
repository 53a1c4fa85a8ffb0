"""A mixture of Gaussians with diagonal or full covariances, by expectation maximisation.

Source: Dempster, Laird & Rubin 1977; initial centres as in Arthur & Vassilvitskii 2007 (k-means++).
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key

from jvae.api import Params
from jvae.fields import setting
from jvae.fitted.contract import FITTED, Density, FittedKind
from jvae.latent.gaussian import LOG_2PI
from jvae.parallel.mesh import kept_rows

CHUNK = 4_096  # latents whose responsibilities are in memory at once
SEEDED = 4_096  # latents from which initial centres are chosen
SHAPES = ("full", "diagonal")


@dataclass(frozen=True)
class GmmOptions:
    """Options of the fitted prior `gmm`."""

    components: int = setting(20, low=1, high=100_000, help="Gaussians per label.")
    covariance: str = setting("full", choices=SHAPES, help="Form of each Gaussian's covariance.")
    iterations: int = setting(200, low=1, high=100_000, help="Maximum EM steps per start.")
    tolerance: float = setting(
        1e-5,
        low=0.0,
        high=1.0,
        help="EM ends when a step gains less than this, in nats per latent.",
    )
    starts: int = setting(
        3, low=1, high=1_000, help="Number of random starts; the most likely fit is kept."
    )
    ridge: float = setting(1e-4, above=0.0, high=1.0, help="Added to variances.")


class _Mixture(NamedTuple):
    """Weights, means and Cholesky factors; if diagonal, `factor` is standard deviations (K, D)."""

    log_weight_k: Float[Array, "k"]
    mean_kd: Float[Array, "k d"]
    factor: Float[Array, "k d *d"]


def _log_each(mixture: _Mixture, u_nd: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Log of weight times density for every component."""
    if mixture.factor.ndim == 2:
        left_nkd = (u_nd[:, None] - mixture.mean_kd[None]) / mixture.factor[None]
        square_nk, scale_kd = jnp.sum(left_nkd**2, axis=2), mixture.factor
    else:

        def square(mean_d: Array, factor_dd: Array) -> Array:
            return jnp.sum(solve_triangular(factor_dd, (u_nd - mean_d[None]).T, lower=True) ** 2, 0)

        square_nk = jax.vmap(square, out_axes=1)(mixture.mean_kd, mixture.factor)
        scale_kd = jnp.diagonal(mixture.factor, axis1=1, axis2=2)
    log_det_k = jnp.sum(jnp.log(scale_kd) + 0.5 * LOG_2PI, axis=1)
    return (mixture.log_weight_k - log_det_k)[None] - 0.5 * square_nk


class _Sums(NamedTuple):
    """Expected counts, first and second moments of every component around a centre, and the
    log-likelihood. The centre is close to the mean, so that variances lose no digits where the mean
    is large.
    """

    count_k: Array
    first_kd: Array
    second: Array
    nats: Array


def _sums(
    options: GmmOptions, centre_kd: Array, u_nd: Array, share_nk: Array, nats: Array | float
) -> _Sums:
    away_nkd = u_nd[:, None] - centre_kd[None]
    if options.covariance == "diagonal":
        second = jnp.einsum("nk,nkd->kd", share_nk, away_nkd**2)
    else:
        second = jnp.einsum("nkd,nke->kde", share_nk[:, :, None] * away_nkd, away_nkd)
    first_kd = jnp.einsum("nk,nkd->kd", share_nk, away_nkd)
    return _Sums(jnp.sum(share_nk, axis=0), first_kd, second, jnp.asarray(nats))


def _maximise(options: GmmOptions, centre_kd: Array, sums: _Sums) -> _Mixture:
    count_k = jnp.maximum(sums.count_k, 1e-6)
    shift_kd = sums.first_kd / count_k[:, None]
    mean_kd = centre_kd + shift_kd
    log_weight_k = jnp.log(count_k / jnp.sum(count_k))
    if options.covariance == "diagonal":
        var_kd = sums.second / count_k[:, None] - shift_kd**2
        return _Mixture(log_weight_k, mean_kd, jnp.sqrt(jnp.maximum(var_kd, 0.0) + options.ridge))
    covariance_kdd = sums.second / count_k[:, None, None]
    covariance_kdd = covariance_kdd - shift_kd[:, :, None] * shift_kd[:, None]
    eye_dd = jnp.eye(mean_kd.shape[1])
    factor_kdd = jnp.linalg.cholesky(covariance_kdd + options.ridge * eye_dd[None])
    # A component of a few latents that lie far apart is singular beyond what float32 resolves; it
    # keeps its variances alone.
    var_kd = jnp.diagonal(covariance_kdd, axis1=1, axis2=2)
    spread_kd = jnp.sqrt(jnp.maximum(var_kd, 0.0) + options.ridge)
    valid_k = jnp.all(jnp.isfinite(factor_kdd), axis=(1, 2))
    diagonal_kdd = spread_kd[:, :, None] * eye_dd[None]
    factor_kdd = jnp.where(valid_k[:, None, None], factor_kdd, diagonal_kdd)
    return _Mixture(log_weight_k, mean_kd, factor_kdd)


def _start(options: GmmOptions, u_nd: Array, weight_n: Array, key: Key[Array, ""]) -> _Mixture:
    """Initial mixture: well-separated centres with a common covariance."""
    order_key, first_key, key = jax.random.split(key, 3)
    # Latents of other labels have weight 0 and come last.
    order_n = jnp.argsort(jax.random.uniform(order_key, weight_n.shape) + 2 * (weight_n == 0))
    place_m = order_n[:SEEDED]
    u_md, weight_m = u_nd[place_m], weight_n[place_m]
    k, log_weight_m = options.components, jnp.log(weight_m)
    first = jax.random.categorical(first_key, log_weight_m)
    centre_kd = jnp.zeros((k, u_nd.shape[1]), u_nd.dtype).at[0].set(u_md[first])
    near_m = jnp.sum((u_md - u_md[first][None]) ** 2, axis=1)

    def choose(at: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centre_kd, near_m = state
        odds_m = jnp.log(jnp.maximum(near_m, 1e-12)) + log_weight_m
        place = jax.random.categorical(jax.random.fold_in(key, at), odds_m)
        near_m = jnp.minimum(near_m, jnp.sum((u_md - u_md[place][None]) ** 2, axis=1))
        return centre_kd.at[at].set(u_md[place]), near_m

    centre_kd, _ = jax.lax.fori_loop(1, k, choose, (centre_kd, near_m))
    away_mk = jax.vmap(lambda c_d: jnp.sum((u_md - c_d[None]) ** 2, axis=1), out_axes=1)(centre_kd)
    share_mk = jax.nn.one_hot(jnp.argmin(away_mk, axis=1), k) * weight_m[:, None]
    left_md = (u_md - (share_mk @ centre_kd)) * weight_m[:, None]
    zero_1d = jnp.zeros_like(centre_kd[:1])
    common = _sums(options, zero_1d, left_md, weight_m[:, None], 0.0)
    around = _maximise(options, zero_1d, common._replace(first_kd=zero_1d))
    factor = jnp.broadcast_to(around.factor, (k, *around.factor.shape[1:]))
    return _Mixture(jnp.full((k,), -jnp.log(float(k))), centre_kd, factor)


def _climb(
    options: GmmOptions, u_nd: Array, weight_n: Array, key: Key[Array, ""]
) -> tuple[Array, _Mixture]:
    """Runs EM from one initialisation; returns (log-likelihood per latent, mixture)."""
    count, total = len(u_nd), jnp.sum(weight_n)
    size = min(CHUNK, count)
    chunks = -(-count // size)
    pad = chunks * size - count
    u_cbd = jnp.pad(u_nd, ((0, pad), (0, 0))).reshape(chunks, size, -1)
    weight_cb = jnp.pad(weight_n, (0, pad)).reshape(chunks, size)

    def step(mixture: _Mixture) -> tuple[Array, _Mixture]:
        def add(sums: _Sums, chunk: tuple[Array, Array]) -> tuple[_Sums, None]:
            u_bd, weight_b = kept_rows(chunk[0]), kept_rows(chunk[1])
            log_bk = _log_each(mixture, u_bd)
            log_b = logsumexp(log_bk, axis=1)
            share_bk = jnp.exp(log_bk - log_b[:, None]) * weight_b[:, None]
            more = _sums(options, mixture.mean_kd, u_bd, share_bk, jnp.sum(log_b * weight_b))
            return jax.tree.map(jnp.add, sums, more), None

        none_bk = jnp.zeros((size, options.components))
        nothing = _sums(options, mixture.mean_kd, u_cbd[0], none_bk, 0.0)
        sums, _ = jax.lax.scan(add, nothing, (u_cbd, weight_cb))
        return sums.nats / total, _maximise(options, mixture.mean_kd, sums)

    def unfinished(state: tuple[Array, Array, Array, _Mixture]) -> Array:
        turn, before, now, _ = state
        return (turn < options.iterations) & (now - before > options.tolerance)

    def turn(state: tuple[Array, Array, Array, _Mixture]) -> tuple[Array, Array, Array, _Mixture]:
        number, _, now, mixture = state
        nats, better = step(mixture)
        return number + 1, now, nats, better

    low = jnp.asarray(-jnp.inf, u_nd.dtype)
    nats, mixture = step(_start(options, u_nd, weight_n, key))
    _, _, nats, mixture = jax.lax.while_loop(unfinished, turn, (jnp.asarray(1), low, nats, mixture))
    return nats, mixture


@partial(jax.jit, static_argnames=("options", "labels"))
def _fit(
    options: GmmOptions, labels: int, u_nd: Array, label_n: Array, key: Key[Array, ""]
) -> _Mixture:
    def of(label: Array) -> _Mixture:
        weight_n = (label_n == label).astype(u_nd.dtype)
        key_s = jax.random.split(jax.random.fold_in(key, label), options.starts)
        nats_s, mixture_s = jax.lax.map(
            lambda start_key: _climb(options, u_nd, weight_n, start_key), key_s
        )
        best = jnp.argmax(jnp.nan_to_num(nats_s, nan=-jnp.inf))
        return jax.tree.map(lambda leaf: leaf[best], mixture_s)

    return jax.lax.map(of, jnp.arange(labels))


def build(options: GmmOptions, shape: tuple[int, int], labels: int) -> Density:
    """Builds the density; see `FittedKind`."""
    width = shape[0] * shape[1]

    def fit(u_ngz: Array, label_n: Array, key: Key[Array, ""]) -> dict[str, Array]:
        mixture_c = _fit(options, labels, u_ngz.reshape(-1, width), label_n, key)
        return dict(zip(("log_weight_ck", "mean_ckd", "factor_ck"), mixture_c, strict=True))

    def sample(p: Params, key_e: Key[Array, "e"], label_e: Array) -> Float[Array, "e g z"]:
        def draw(key: Array, label: Array) -> Array:
            component_key, noise_key = jax.random.split(key)
            k = jax.random.categorical(component_key, p["log_weight_ck"][label])
            noise_d, factor = jax.random.normal(noise_key, (width,)), p["factor_ck"][label, k]
            spread_d = factor * noise_d if factor.ndim == 1 else factor @ noise_d
            return p["mean_ckd"][label, k] + spread_d

        return jax.vmap(draw)(key_e, label_e).reshape(-1, *shape)

    def log_prob(p: Params, u_egz: Array, label: Array) -> Float[Array, "e"]:
        mixture = _Mixture(p["log_weight_ck"][label], p["mean_ckd"][label], p["factor_ck"][label])
        return logsumexp(_log_each(mixture, u_egz.reshape(-1, width)), axis=1)

    return Density(fit, sample, log_prob)


FITTED.register("gmm")(FittedKind(GmmOptions, build))
