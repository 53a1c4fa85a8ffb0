"""Chains of latent groups: each group's prior and posterior depend on the groups below it.

    p(z) = prod_g p(z_g | z_<g)        q(z | x) = prod_g q(z_g | z_<g, x)

Every factor is a diagonal Gaussian, conditioned on a summary of the groups below. The text's
contribution is added to the outputs of the heads and computed once per sentence. Samples, densities
and means then need only a cheap scan over groups, without another pass over the text.

Axis letters are those of `jvae.api`, plus C for mean and log-variance, in this order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Cond, Params, Posterior, Prior
from jvae.latent.gaussian import Gaussian, kl, log_density, noise
from jvae.latent.kl import closed_form


class Chain(NamedTuple):
    """Shape and functions of a chain; `p` below is one group's slice of `params_of(params)`.

    Attributes:
      groups, width: number of groups G and their dimension Z.
      params_of: selects the chain's parameters, a tree with leading axis G, from the model's.
      summary: (p, s_ez, z_ez) -> s_ez, updates the summary of the groups below with the latent of
        the group just below; both inputs are 0 at the first group.
      prior: (p, s_ez) -> stats_ecz. posterior: (p, s_ez) -> stats_ecz.
      source_of: (cond) -> source_egcz, added to the outputs of the prior's heads; None for an
        unconditional model.
      clip: means and log-variances are clipped to +-clip; their gradient is 0 outside.
      learned_first: False makes the first group's prior standard normal.
    """

    groups: int
    width: int
    params_of: Callable[[Params], Any]
    summary: Callable[[Any, Array, Array], Array]
    prior: Callable[[Any, Array], Array]
    posterior: Callable[[Any, Array], Array]
    source_of: Callable[[Any], Array | None] = lambda cond: None
    clip: float = 5.0
    learned_first: bool = True


class ChainPost(NamedTuple):
    """Each sentence's addend to the outputs of the posterior's heads, for all groups."""

    text_egcz: Float[Array, "e g 2 z"]


class Walk(NamedTuple):
    """The latents of all groups, and the Gaussians along the chain before clipping."""

    z_egz: Float[Array, "e g z"]
    prior: Gaussian
    posterior: Gaussian | None  # None when no text is given


Pick = Callable[[Array, Array, Array], Array]  # (mean_ez, log_var_ez, given_ez) -> z_ez


def reparameterized(mean_ez: Array, log_var_ez: Array, noise_ez: Array) -> Array:
    """mean + exp(log_var / 2) * noise."""
    return mean_ez + jnp.exp(0.5 * log_var_ez) * noise_ez


def the_mean(mean_ez: Array, log_var_ez: Array, given_ez: Array) -> Array:
    """The mean; ignores the given values."""
    del log_var_ez, given_ez
    return mean_ez


def the_given(mean_ez: Array, log_var_ez: Array, given_ez: Array) -> Array:
    """The given latent itself."""
    del mean_ez, log_var_ez
    return given_ez


def walk(
    chain: Chain,
    params: Params,
    pick: Pick,
    given_egz: Float[Array, "e g z"],
    *,
    text_egcz: Float[Array, "e g 2 z"] | None = None,
    source_egcz: Float[Array, "e g 2 z"] | None = None,
) -> Walk:
    """Runs the chain once, from the first group to the last.

    Args:
      pick: computes each group's latent from its posterior (its prior if no text is given) and its
        slice of `given_egz`: `reparameterized` (noise), `the_given` (z) or `the_mean`.
      text_egcz, source_egcz: addends to the outputs of the posterior's and the prior's heads.
    """
    chain_params = chain.params_of(params)
    addends = (text_egcz, source_egcz)
    dtype = jnp.result_type(given_egz, *jax.tree.leaves((chain_params, addends)))
    given_gez, addends = jax.tree.map(
        lambda a: jnp.moveaxis(a.astype(dtype), 1, 0), (given_egz, addends)
    )

    def link(below: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Any]:
        s_ez, z_ez = below
        p, group, given_ez, (text_ecz, source_ecz) = inputs
        s_ez = chain.summary(p, s_ez, z_ez)
        prior_ecz = chain.prior(p, s_ez)
        if source_ecz is not None:
            prior_ecz = prior_ecz + source_ecz
        if not chain.learned_first:
            prior_ecz = jnp.where(group == 0, 0.0, prior_ecz)
        posterior_ecz = None if text_ecz is None else chain.posterior(p, s_ez) + text_ecz
        stats_ecz = prior_ecz if posterior_ecz is None else posterior_ecz
        stats_ecz = jnp.clip(stats_ecz, -chain.clip, chain.clip)
        z_ez = pick(stats_ecz[:, 0], stats_ecz[:, 1], given_ez)
        return (s_ez, z_ez), (z_ez, prior_ecz, posterior_ecz)

    nothing = jnp.zeros(given_gez.shape[1:], dtype)
    per_group = (chain_params, jnp.arange(chain.groups), given_gez, addends)
    _, stacked = jax.lax.scan(link, (nothing, nothing), per_group)
    z_egz, prior_egcz, posterior_egcz = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), stacked)
    return Walk(
        z_egz,
        Gaussian(prior_egcz[:, :, 0], prior_egcz[:, :, 1]),
        None
        if posterior_egcz is None
        else Gaussian(posterior_egcz[:, :, 0], posterior_egcz[:, :, 1]),
    )


def clipped(chain: Chain, gaussian: Gaussian) -> Gaussian:
    """The Gaussian that the chain uses: the outputs of its heads, clipped."""
    return Gaussian(*(jnp.clip(stats, -chain.clip, chain.clip) for stats in gaussian))


@closed_form(Chain, Chain)
def _chain_kl(
    params: Params,
    posterior: Posterior,
    post: ChainPost,
    z_egz: Float[Array, "e g z"],
    prior: Prior,
    cond: Cond,
) -> Float[Array, "e g z"]:
    """KL per dimension in nats, in closed form given the draw's lower groups.

    The prior reads the same lower groups. Source: Hu et al. 2022 (DELLA), eq. 6.
    """
    chain, source_egcz = posterior.form, prior.form.source_of(cond)
    path = walk(chain, params, the_given, z_egz, text_egcz=post.text_egcz, source_egcz=source_egcz)
    assert path.posterior is not None
    return kl(clipped(chain, path.posterior), clipped(chain, path.prior))


def posterior(
    chain: Chain,
    encode: Callable[[Params, Batch, Key[Array, ""] | None, Cond | None], ChainPost],
) -> Posterior:
    """Makes a `Posterior` from `encode(params, batch, drop, cond)`."""

    def _encode(
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None = None,
        *,
        cond: Cond | None = None,
        key_e: Key[Array, "e"] | None = None,
    ) -> ChainPost:
        del key_e  # amortised inference is deterministic
        return encode(params, batch, drop, cond)

    def _sample(params: Params, post: ChainPost, key_ke: Key[Array, "k e"]):
        def draw(noise_egz: Array) -> Array:
            return walk(chain, params, reparameterized, noise_egz, text_egcz=post.text_egcz).z_egz

        return jax.vmap(draw)(noise(key_ke, (chain.groups, chain.width)))

    def _log_prob(params: Params, post: ChainPost, z_egz: Array) -> Array:
        walked = walk(chain, params, the_given, z_egz, text_egcz=post.text_egcz)
        assert walked.posterior is not None
        return log_density(clipped(chain, walked.posterior), walked.z_egz)

    def _mean(params: Params, post: ChainPost) -> Array:
        nothing = jnp.zeros_like(post.text_egcz[:, :, 0])
        return walk(chain, params, the_mean, nothing, text_egcz=post.text_egcz).z_egz

    return Posterior(_encode, _sample, _log_prob, _mean, form=chain)


def prior(chain: Chain) -> Prior:
    """The autoregressive prior of a chain of groups."""

    def sample(params: Params, key_e: Key[Array, "e"], cond: Cond = None) -> Float[Array, "e g z"]:
        noise_egz = noise(key_e, (chain.groups, chain.width))
        source_egcz = chain.source_of(cond)
        return walk(chain, params, reparameterized, noise_egz, source_egcz=source_egcz).z_egz

    def log_prob(params: Params, z_egz: Array, cond: Cond = None) -> Float[Array, "e"]:
        path = walk(chain, params, the_given, z_egz, source_egcz=chain.source_of(cond))
        return log_density(clipped(chain, path.prior), path.z_egz)

    return Prior(sample, log_prob, form=chain)
