"""SpaceFusion: encodes a response and its preceding context into one latent space.

    z_response ~ q(z | x)     z_context ~ p(z | c)
    z_between = u z_response + (1 - u) z_context + noise, u ~ U(0, 1)
    loss = -log p(x | z) of all three + weight * fuse
    fuse = (mean |z_response - z_context| - 2 min(D(z_response), D(z_context))) / sqrt(Z)

D is the mean distance of a latent to its nearest neighbour of the same kind in the batch, where
distances above margin * sqrt(Z) count as that. The model of a response is the one used for
decoding, p(z | c) p(x | z), with the encoded context as prior. The loss has no KL term if
`objective.beta` is 0.

Source: Gao et al. 2019, arXiv 1902.11205, as used by Li et al. 2020 (Optimus), and their code.
Deviations: in that code the nearest latent may be the latent itself, which makes D 0 and pushes
nothing apart; here it is always another one. With that, the loss falls without bound as latents
move away from the origin, since pull and push grow alike; the margin, which the sources do not
have, bounds it by -2 * margin. There, the speaker assigned to a turn depends on the batch; here,
only on the context.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvae.api import Cond, Draws, Params, Post, Posterior, Prior, Side, mean_valid, per_example
from jvae.api import Generator as TextGenerator
from jvae.latent.gaussian import DiagonalGaussian, Gaussian, kl, log_density, noise, reparameterize
from jvae.latent.kl import closed_form
from jvae.models.generator import Context

NAME = "context"  # name of the parameters that are used for the context only
TINY = 1e-12  # minimum squared distance, so that the square root has a finite gradient


class OfCondition(NamedTuple):
    """KL form of a prior that is given by the condition, a `Gaussian`."""


@closed_form(DiagonalGaussian, OfCondition)
def _kl(
    params: Params, posterior: Posterior, post: Post, z_egz: Array, prior: Prior, cond: Cond
) -> Float[Array, "e g z"]:
    del params, posterior, z_egz, prior
    return kl(Gaussian(post.mean_egz, post.log_var_egz), cond)


def prior() -> Prior:
    """The prior p(z | c), which is the condition itself."""

    def sample(params: Params, key_e: Array, cond: Cond = None) -> Float[Array, "e g z"]:
        del params
        return reparameterize(cond, noise(key_e, cond.mean_egz.shape[1:]))

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        del params
        return log_density(cond, z_egz)

    return Prior(sample, log_prob, OfCondition())


def branch(encoder_l: Params, context_l: Params) -> Params:
    """Stacked layers for the context: the encoder's, with the last ones replaced."""

    def joined(shared: Array, context: Array) -> Array:
        return jnp.concatenate([shared[: shared.shape[0] - context.shape[0]], context])

    return jax.tree.map(joined, encoder_l, context_l)


def last(encoder_l: Params, layers: int) -> Params:
    """The last `layers` of some stacked layers."""
    return jax.tree.map(lambda leaf: leaf[leaf.shape[0] - layers :], encoder_l)


def turns(side: Side) -> Side:
    """Sets token types by speaker: 0 in the last turn of a text, 1 in the one before, alternating.

    A turn ends with the same token as its text.
    """
    segment_bt, length = side.segment_bt, side.segment_bt.shape[1]
    own_bts = (segment_bt[:, :, None] == segment_bt[:, None]) & (segment_bt > 0)[:, :, None]
    last_bs = segment_bt != jnp.pad(segment_bt[:, 1:], ((0, 0), (0, 1)))
    end_bt = jnp.max(jnp.where(own_bts & last_bs[:, None], side.token_bt[:, None], -1), axis=2)
    later_ts = jnp.tril(jnp.ones((length, length), bool)).T
    follows_bts = own_bts & (side.token_bt == end_bt)[:, None] & later_ts[None]
    # The end of a token's own turn is at or after the token.
    number_bt = jnp.sum(follows_bts, axis=2) - (segment_bt > 0)
    return side._replace(type_bt=(number_bt % 2).astype(side.token_bt.dtype))


def aux(
    gen: TextGenerator,
    between_noise: float,
    push_margin: float,
    params: Params,
    ctx: Context,
    draws: Draws,
) -> dict[str, Float[Array, "e"]]:
    """The auxiliary terms `context`, `between` and `fuse`.

    `context` and `between` are -log p(x | z) in nats, at a draw for the context and at a point
    between response and context. `fuse` is dimensionless and couples the batch.

    Args:
      between_noise: standard deviation of the noise added to that point.
      push_margin: see `spread`.
    """
    z_egz, of_context = draws.z_kegz[0], draws.cond
    assert of_context is not None  # `condition` gives one
    keys = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(draws.key_e) for i in range(3)]
    context_egz = reparameterize(of_context, noise(keys[0], z_egz.shape[1:]))
    share_e = jax.vmap(lambda key: jax.random.uniform(key, dtype=z_egz.dtype))(keys[1])
    share_egz = share_e[:, None, None]
    between_egz = share_egz * z_egz + (1 - share_egz) * context_egz
    between_egz = between_egz + between_noise * noise(keys[2], z_egz.shape[1:])

    def rec(z_egz: Array) -> Float[Array, "e"]:
        return -per_example(gen.log_lik(params, ctx, z_egz), ctx.batch)

    return {
        "context": rec(context_egz),
        "between": rec(between_egz),
        "fuse": fuse(_flat(z_egz), _flat(context_egz), draws.valid_e, push_margin),
    }


def _flat(z_egz: Float[Array, "e g z"]) -> Float[Array, "e d"]:
    return z_egz.reshape(z_egz.shape[0], -1)


def fuse(
    response_ed: Float[Array, "e d"],
    context_ed: Float[Array, "e d"],
    valid_e: Bool[Array, "e"],
    margin: float,
) -> Float[Array, "e"]:
    """Per-example values of the loss that pulls pairs together and pushes other latents apart.

    Their mean over the valid examples is the loss; they are 0 at empty slots.
    """
    pull_e = _length(response_ed - context_ed)
    push = jnp.minimum(*(spread(z_ed, valid_e, margin) for z_ed in (response_ed, context_ed)))
    value_e = (pull_e - 2 * push) / response_ed.shape[1] ** 0.5
    return jnp.where(valid_e, value_e, 0.0)


def spread(z_ed: Float[Array, "e d"], valid_e: Bool[Array, "e"], margin: float) -> Float[Array, ""]:
    """Mean distance of a latent to the nearest other valid one; 0 if there is only one.

    Args:
      margin: the largest distance that counts, in units of sqrt(D): latents that far from all
        others are not pushed any further.
    """
    nearest_e = _nearest(z_ed, valid_e)
    most = margin * z_ed.shape[1] ** 0.5
    distance_e = jnp.minimum(_length(z_ed - z_ed[nearest_e]), most)
    return jnp.where(jnp.sum(valid_e) > 1, mean_valid(distance_e, valid_e), 0.0)


def _nearest(z_ed: Float[Array, "e d"], valid_e: Bool[Array, "e"]) -> Int[Array, "e"]:
    """Index of the nearest other latent; distances come from products, not an (E, E, D) array."""
    z_ed = jax.lax.stop_gradient(z_ed)
    square_e = jnp.sum(jnp.square(z_ed), axis=1)
    apart_ef = square_e[:, None] + square_e[None] - 2 * z_ed @ z_ed.T
    other_ef = valid_e[None] & ~jnp.eye(len(z_ed), dtype=bool)
    return jnp.argmin(jnp.where(other_ef, apart_ef, jnp.inf), axis=1)


def _length(x_ed: Float[Array, "e d"]) -> Float[Array, "e"]:
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x_ed), axis=1), TINY))
