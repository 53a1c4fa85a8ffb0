"""Likelihood from the density of the short run itself, the published estimator of SRI.

    log w_m = log p(x | z_K) + log p(z_K) - log p(z_0) + log |det dz_K / dz_0|
    NLL(x)  = -log (1/M) sum_m w_m

Source: Pang et al. 2021, the released `train_sri.py`. Deviations: the Jacobian and the end point
come from the same run and its noise (the released code takes them from two runs, which can read
below the true value); all sentences are scored; and noise is off by default.
The estimate can be arbitrarily pessimistic if the end points are narrower than the posterior: read
it together with its effective sample size.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Key

from jvae.api import Batch, Generator, Params, Prior, example_keys, per_example
from jvae.evals.collect import collect
from jvae.evals.likelihood import LikelihoodResult
from jvae.latent import short_run, volume
from jvae.latent.iw_bound import Scores, full_precision, nll_of
from jvae.latent.short_run import ChainConfig

DRAWS = 10  # M, as in the released code
LOOSE_SHARE = 0.1  # an effective sample size below this share of the draws raises the alarm


@partial(jax.jit, static_argnames=("gen", "prior", "cfg", "draws", "temperature"))
def _score(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    draws: int,
    temperature: float,
    params: Params,
    batch: Batch,
    key: Array,
) -> Scores:
    cond = gen.condition(params, batch)
    chain = short_run.prepare(gen, prior, cfg, params, batch, cond=cond, temperature=temperature)
    ctx = gen.prepare(params, batch, cond=cond)

    def estimate(key_e: Array) -> tuple[Array, Array]:
        z_egz = chain.start(key_e)
        noise_at = short_run.noise_of(key_e, z_egz.shape[1:])
        done = volume.per_step(chain.kernel_at, z_egz, chain.steps, noise_at)
        log_q_e = full_precision(prior.log_prob(params, z_egz, cond)) - full_precision(
            done.log_det_e
        )
        kl_e = log_q_e - full_precision(prior.log_prob(params, done.end_egz, cond))
        return nll_of(gen, params, ctx, batch, done.end_egz), kl_e

    nll_me, kl_me = jax.lax.map(estimate, example_keys(key, batch.id_e, jnp.arange(draws)))
    log_w_me = -nll_me - kl_me
    total_e = logsumexp(log_w_me, axis=0)
    nll_e = jnp.log(jnp.asarray(draws, total_e.dtype)) - total_e
    return Scores(
        nll_e=nll_e,
        rec_e=jnp.mean(nll_me, axis=0),
        kl_e=jnp.mean(kl_me, axis=0),
        ess_e=jnp.exp(2 * total_e - logsumexp(2 * log_w_me, axis=0)),
        scored_e=per_example(batch.scored_bt.astype(jnp.float32), batch).astype(jnp.int32),
        bound_e={draws: nll_e},
    )


def score_batch(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    *,
    draws: int = DRAWS,
    temperature: float = 0.0,
) -> Callable[[Params, Batch, Key[Array, ""]], Scores]:
    """Compiles (params, batch, key) -> Scores, which uses `draws` short runs per example.

    Costs `draws` * K * latent width Hessian-vector products of the decoder.

    Args:
      temperature: scales the noise, which the Jacobian shares; the published value is 0.2.
    """
    return partial(_score, gen, prior, cfg, draws, temperature)


def evaluate(
    gen: Generator,
    prior: Prior,
    cfg: ChainConfig,
    params: Params,
    batches: Iterable[Batch],
    key: Key[Array, ""],
    *,
    draws: int = DRAWS,
    temperature: float = 0.0,
) -> LikelihoodResult:
    """Scores each sentence of `batches` once; see `score_batch`.

    Raises: DataError if a sentence occurs twice or there are none.
    """
    score = score_batch(gen, prior, cfg, draws=draws, temperature=temperature)
    id_e, scores = collect((batch.id_e, score(params, batch, key)) for batch in batches)
    return LikelihoodResult(k=draws, latent=True, id_e=id_e, scores=scores)


def alarm(result: LikelihoodResult) -> str | None:
    """A warning if the estimate's weights rest on few draws; otherwise None.

    If the run is narrower than the posterior, its weights have infinite variance: more draws do not
    help.
    """
    share = float(np.mean(result.scores.ess_e)) / result.k
    if share >= LOOSE_SHARE:
        return None
    return (
        f"change of variables: effective sample size {100 * share:.1f} % of {result.k} draws; the "
        "short run is narrower than the posterior and the estimate too pessimistic"
    )
