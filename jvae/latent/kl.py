"""The KL from a posterior to a prior, shared by training and evaluation.

`closed_form` registers a closed-form KL for the types of the two `form` fields. Any other pair
whose posterior has a density uses log q(z) - log p(z) at the draw, an unbiased estimate of the KL.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvae.api import Cond, Params, Post, Posterior, Prior

ClosedForm = Callable[[Params, Posterior, Post, Array, Prior, Cond], Array]


class _Rule(NamedTuple):
    of: ClosedForm
    per_dimension: bool


_CLOSED_FORMS: dict[tuple[type, type], _Rule] = {}


class Kl(NamedTuple):
    """A KL per example and, if available, per latent dimension, in nats."""

    nats_e: Float[Array, "e"]
    nats_egz: Float[Array, "e g z"] | None  # per latent dimension; None if it does not decompose


def closed_form(
    posterior: type, prior: type, per_dimension: bool = True
) -> Callable[[ClosedForm], ClosedForm]:
    """Registers a closed-form KL for two forms.

    The rule is (params, posterior, post, z_egz, prior, cond) -> nats_egz, or nats_e if the KL is
    not a sum over dimensions (`per_dimension=False`). It takes `z_egz` because the KL of a chain of
    groups depends on the draw's lower groups.
    """

    def register(rule: ClosedForm) -> ClosedForm:
        _CLOSED_FORMS[posterior, prior] = _Rule(rule, per_dimension)
        return rule

    return register


def _rule(posterior: Posterior, prior: Prior) -> _Rule | None:
    return _CLOSED_FORMS.get((type(posterior.form), type(prior.form)))


def per_dimension(posterior: Posterior, prior: Prior) -> bool:
    """Whether the KL of this pair is available per latent dimension."""
    rule = _rule(posterior, prior)
    return not posterior.has_kl or (rule is not None and rule.per_dimension)


def kl(
    params: Params,
    posterior: Posterior,
    post: Post,
    z_egz: Float[Array, "e g z"],
    prior: Prior,
    cond: Cond | None = None,
) -> Kl:
    """KL(q(z | x) || p(z)) of each example, given a draw from q.

    Raises: ValueError for a posterior without a density, unless its KL is 0 by definition.
    """
    if not posterior.has_kl:
        zero_egz = jnp.zeros(z_egz.shape, z_egz.dtype)
        return Kl(jnp.sum(zero_egz, axis=(1, 2)), zero_egz)
    if rule := _rule(posterior, prior):
        nats = rule.of(params, posterior, post, z_egz, prior, cond)
        return Kl(jnp.sum(nats, axis=(1, 2)), nats) if rule.per_dimension else Kl(nats, None)
    if posterior.log_prob is None:
        raise ValueError(
            "this posterior has no density, so its KL cannot be estimated; give it `log_prob`, or "
            "`has_kl=False` if its KL is 0 by definition"
        )
    log_q_e = posterior.log_prob(params, post, z_egz)
    return Kl(log_q_e - prior.log_prob(params, z_egz, cond), None)
