"""Proposals for importance-weighted likelihood bounds other than the posterior itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Cond, Params, Post, Posterior, Prior, Proposal


def from_prior(prior: Prior) -> Proposal:
    """The prior alone. The bound does not depend on a posterior, and is loose if the latent is
    informative.
    """

    def sample(params: Params, post: Post, key_ke: Key[Array, "k e"], cond: Cond = None) -> Array:
        return jax.vmap(lambda key_e: prior.sample(params, key_e, cond))(key_ke)

    def log_prob(params: Params, post: Post, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        return prior.log_prob(params, z_egz, cond)

    return Proposal(sample, log_prob)


def with_prior(prior: Prior, posterior: Posterior) -> Proposal:
    """A defensive mixture of posterior and prior in equal parts: no weight exceeds 2 p(x | z).

    Raises: ValueError if the posterior has no density.
    """
    if posterior.log_prob is None:
        raise ValueError("with_prior: the posterior has no density; use a fitted one")
    log_q = posterior.log_prob

    def sample(params: Params, post: Post, key_ke: Key[Array, "k e"], cond: Cond = None) -> Array:
        key_ke3 = jax.vmap(jax.vmap(lambda key: jax.random.split(key, 3)))(key_ke)
        coin_ke = jax.vmap(jax.vmap(jax.random.bernoulli))(key_ke3[:, :, 0])
        from_q_kegz = posterior.sample(params, post, key_ke3[:, :, 1])
        draw = lambda key_e: prior.sample(params, key_e, cond)  # noqa: E731
        prior_kegz = jax.vmap(draw)(key_ke3[:, :, 2])
        return jnp.where(coin_ke[:, :, None, None], from_q_kegz, prior_kegz)

    def log_prob(params: Params, post: Post, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        either_e = jnp.logaddexp(log_q(params, post, z_egz), prior.log_prob(params, z_egz, cond))
        return either_e - jnp.log(2.0).astype(either_e.dtype)

    return Proposal(sample, log_prob)
