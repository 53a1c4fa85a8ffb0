"""Optional bounds that check or tighten the main one."""

from collections.abc import Iterator

import jax
import numpy as np

from jvae.api import Batch, Params
from jvae.evals import change_of_variables
from jvae.evals.card import Report
from jvae.evals.collect import mean_se
from jvae.evals.likelihood import LikelihoodResult, evaluate_likelihood
from jvae.evals.settings import EvalConfig
from jvae.latent import mixture, short_run
from jvae.runs import build

# A fit to R end points loses about width / R nats to its own noise.
REFINED_CHAINS, BOUND_DRAWS = 512, 20


def by_prior(
    this: build.Run,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
    ours: LikelihoodResult,
    cfg: EvalConfig,
) -> None:
    """The bound by draws from the prior, a check of ours: both lie above -log p(x), but this one
    reads no posterior, no KL and no density of a proposal.
    """
    found = evaluate_likelihood(
        this.model,
        params,
        batches,
        key,
        cfg.prior_samples,
        chunk=cfg.chunk,
        proposal=mixture.from_prior(this.model.prior),
    )
    nll_e = found.scores.nll_e[np.argsort(found.id_e)]
    above_e = nll_e - ours.scores.nll_e[np.argsort(ours.id_e)]
    unit, note = "nats/sentence", f"K = {cfg.prior_samples} draws from the prior"
    mean, se = mean_se(nll_e)
    report.add("nll_prior", mean, unit, se=se, note=note)
    mean, se = mean_se(above_e)
    note = f"paired, over nll_{ours.k}; below 0: ours is looser, or wrong"
    report.add("nll_prior_above", mean, unit, se=se, note=note)


def refined(
    this: build.Run,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
    amortised: LikelihoodResult,
    cfg: EvalConfig,
) -> None:
    """The bound of a Gaussian fitted to short runs from the posterior, and how much tighter
    it is, sentence by sentence.
    """
    chain = short_run.ChainConfig(
        cfg.refine_steps, "constant", cfg.refine_size, 1.0, chains=REFINED_CHAINS
    )
    model = this.model
    post = short_run.fitted(model.gen, model.prior, chain, start=model.metric_post, widen=1.0)
    model = model._replace(post=post)
    found = evaluate_likelihood(model, params, batches, key, BOUND_DRAWS)
    order, known = np.argsort(found.id_e), np.argsort(amortised.id_e)
    neg_elbo_e = (found.scores.rec_e + found.scores.kl_e)[order]
    gain_e = (amortised.scores.rec_e + amortised.scores.kl_e)[known] - neg_elbo_e
    unit, note = (
        "nats/sentence",
        f"{cfg.refine_steps} steps of {cfg.refine_size:g} from the posterior",
    )
    mean, se = mean_se(neg_elbo_e)
    report.add("neg_elbo_refined", mean, unit, se=se, note=note)
    mean, se = mean_se(gain_e)
    report.add("refined_gain", mean, unit, se=se, note="paired, > 0: tighter")


def by_volume(
    this: build.Run,
    chain: short_run.ChainConfig,
    params: Params,
    report: Report,
    batches: Iterator[Batch],
    key: jax.Array,
) -> LikelihoodResult:
    """The bound of the short run's own density, at the temperature of training."""
    found = change_of_variables.evaluate(
        this.model.gen, this.model.prior, chain, params, batches, key, temperature=chain.temperature
    )
    if warning := change_of_variables.alarm(found):
        report.notes.append(warning)
    return found
