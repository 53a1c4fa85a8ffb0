"""Additional bounds that check or tighten the main one."""

import numpy as np

from jvae.api import SPHERE
from jvae.evals.card import Row
from jvae.evals.collect import mean_se
from jvae.evals.likelihood import evaluate_likelihood
from jvae.evals.metric import METRICS, Evaluation
from jvae.latent import mixture, short_run

# A fit to R end points loses about width / R nats to the noise of the fit.
REFINED_CHAINS, BOUND_DRAWS = 512, 20
# Used if the metric is requested but its own setting is 0.
PRIOR_DRAWS, REFINE_STEPS = 200, 10
NATS = "nats/sentence"


@METRICS.register("prior_bound")
def prior_bound(at: Evaluation) -> list[Row]:
    """The bound from `evals.prior_samples` draws from the prior, 200 by default.

    Like the main bound it is above -log p(x), but it does not involve the posterior, the KL or a
    proposal density, so it is an independent check of them.
    """
    if at.posteriors is None:
        return []
    k = at.config.prior_samples or PRIOR_DRAWS
    result = evaluate_likelihood(
        at.run.model,
        at.params,
        at.batches(),
        at.key,
        k,
        chunk=at.config.chunk,
        proposal=mixture.from_prior(at.run.model.prior),
    )
    ours = at.likelihood
    nll_e = result.scores.nll_e[np.argsort(result.id_e)]
    above_e = nll_e - ours.scores.nll_e[np.argsort(ours.id_e)]
    draws = f"K = {k} draws from the prior"
    mean, se = mean_se(nll_e)
    above, above_se = mean_se(above_e)
    paired = f"paired, over nll_{ours.k}; below 0: ours is looser, or wrong"
    return [
        Row("nll_prior", mean, NATS, se=se, note=draws),
        Row("nll_prior_above", above, NATS, se=above_se, note=paired),
    ]


@METRICS.register("refined_bound")
def refined_bound(at: Evaluation) -> list[Row]:
    """The bound of a Gaussian fitted to short Langevin runs from the posterior, and how much
    tighter it is per sentence.

    Not available for a posterior that is itself a sampler, or for latents on a sphere, which the
    Langevin steps would leave.
    """
    model, config, amortised = at.run.model, at.config, at.likelihood
    leaves = model.post.support == SPHERE
    if at.posteriors is None or model.post.sampler is not None or leaves:
        return []
    steps, size = config.refine_steps or REFINE_STEPS, config.refine_size
    chain = short_run.ChainConfig(steps, "constant", size, 1.0, chains=REFINED_CHAINS)
    post = short_run.fitted(model.gen, model.prior, chain, start=model.metric_post, widen=1.0)
    refined = model._replace(post=post)
    result = evaluate_likelihood(refined, at.params, at.batches(), at.key, BOUND_DRAWS)
    order, own_order = np.argsort(result.id_e), np.argsort(amortised.id_e)
    neg_elbo_e = (result.scores.rec_e + result.scores.kl_e)[order]
    gain_e = (amortised.scores.rec_e + amortised.scores.kl_e)[own_order] - neg_elbo_e
    mean, se = mean_se(neg_elbo_e)
    gain, gain_se = mean_se(gain_e)
    note = f"{steps} steps of {size:g} from the posterior"
    return [
        Row("neg_elbo_refined", mean, NATS, se=se, note=note),
        Row("refined_gain", gain, NATS, se=gain_se, note="paired, > 0: tighter"),
    ]
