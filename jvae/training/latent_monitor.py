"""Monitors how much of the latent is used during training, from the validation posteriors."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jvae.api import Params, Post, Posterior, TextVAE, example_keys
from jvae.evals.collect import collect, to_host
from jvae.evals.latent import PosteriorSet, collapse_reasons, latent_metrics
from jvae.latent import gaussian

SENTENCES = 500  # first ones of validation; MI costs their square and is at most ln 500
ACTIVE = 0.01  # variance of the mean above which a unit is active


@partial(jax.jit, static_argnames=("post",))
def _draws(
    post: Posterior, params: Params, q: Post, id_e: Int[Array, "e"], key: Key[Array, ""]
) -> dict[str, Array]:
    _, z_key = jax.random.split(key)  # as in `measure`: the same draws as the loss
    z_kegz = post.sample(params, q, example_keys(z_key, id_e, jnp.arange(1)))
    assert post.log_prob is not None  # only latents with a density are monitored
    return {
        "mean_egz": post.mean(params, q),
        "z_egz": z_kegz[0],
        "log_q_e": post.log_prob(params, q, z_kegz[0]),
    }


class LatentUse(NamedTuple):
    """The latent metrics of one validation check."""

    mi_nats: float  # at most ln N
    active: int
    collapse_reasons: list[str]  # empty if the latent is used
    kl_gz: np.ndarray | None  # mean KL of each dimension, nats; None without a closed form


def latent_use(
    model: TextVAE,
    params: Params,
    parts: Iterable[tuple[Int[Array, "e"], Post]],
    key: Key[Array, ""],
    kl_nats: float,
) -> LatentUse:
    """Mutual information, active units and collapse, with the estimators and the rule of the
    evaluation. Of the evaluation's collapse tests only the Rec gap is left out.

    Args:
      parts: ids and posteriors of the sentences of each batch.
      key: key from which the posteriors' draws are made, as in `jvae.latent.elbo.measure`.
      kl_nats: mean KL of the whole validation split.
    """
    id_e, q = collect(parts)
    draws = to_host(_draws(model.post, params, q, id_e, key))
    forms = type(model.post.form), type(model.prior.form)
    kl_egz = None
    if forms == (gaussian.DiagonalGaussian, gaussian.StandardNormal):
        kl_egz = np.asarray(gaussian.kl_standard(gaussian.Gaussian(q.mean_egz, q.log_var_egz)))
    posts = PosteriorSet(id_e, q, kl_e=np.full(len(id_e), kl_nats), kl_egz=kl_egz, **draws)
    result = latent_metrics(model, params, posts)
    assert result is not None
    return LatentUse(
        result.mi_nats, result.active[ACTIVE], collapse_reasons(result), result.kl_profile_gz
    )
