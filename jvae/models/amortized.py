"""Prior and posterior of model families with an encoder, and latents with several vectors."""

from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Params, Post, Posterior, Side
from jvae.latent.choice import Choice
from jvae.latent.densities import Density, Head, amortized, build_density
from jvae.latent.priors import InputPosterior, PriorParts, build_prior, check_support
from jvae.nn.backbone import Stack
from jvae.nn.layers import accum_dtype, apply
from jvae.nn.resampler import Resampler

QUERIES = "queries"  # the pooling that gives any number of vectors, and the name of its parameters


class Features(Protocol):
    """Returns pooled states, one vector per latent vector.

    Args:
      drop: None for no dropout.
      soft_btd: input vectors that replace the embedded tokens of `batch.enc`.
    """

    def __call__(
        self,
        params: Params,
        batch: Batch,
        drop: Key[Array, ""] | None,
        /,
        soft_btd: Float[Array, "b t d"] | None = None,
    ) -> Float[Array, "e g d"]: ...


class Latent(NamedTuple):
    """Prior, density and posterior of a model, built from its config."""

    prior: PriorParts
    density: Density
    posterior: Posterior


class LatentConfig(Protocol):
    """The fields of a model's config that describe its latent."""

    @property
    def latent(self) -> int: ...

    @property
    def vectors(self) -> int: ...

    @property
    def log_var_shift(self) -> float: ...

    @property
    def prior(self) -> Choice: ...

    @property
    def posterior(self) -> Choice: ...


def density_of(config: LatentConfig, head: Head) -> Density:
    """Builds the density of a config.

    Raises: ConfigError.
    """
    options: dict[str, float] = dict(log_var_shift=config.log_var_shift)
    choice = config.posterior.with_defaults("bn", **options)
    if getattr(config, "log_var", "learned") == "unit":
        options["unit_variance"] = True
    choice = choice.with_defaults("gaussian", **options)
    return build_density(choice, head, (config.vectors, config.latent))


def latent_of(config: LatentConfig, head: Head, encoder: Stack, features: Features) -> Latent:
    """Builds prior, density and posterior of a config.

    Args:
      features: computes the inputs of the density.
    Raises: ConfigError.
    """
    shape, density = (config.vectors, config.latent), density_of(config, head)
    prior = build_prior(config.prior, shape, _inputs(density, encoder, features))
    check_support(config.prior, prior.prior, config.posterior, density.support)
    return Latent(prior, density, amortized(density, features))


def _inputs(density: Density, encoder: Stack, features: Features) -> InputPosterior | None:
    if density.log_prob is None or density.read_together is not None:
        return None

    def start(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "k t d"]:
        embed_key, token_key = jax.random.split(key)
        stack_params = nn.unbox(encoder.init_embed(embed_key))
        token_kt = jax.random.randint(token_key, shape, 0, encoder.config.vocab)
        position_kt = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
        return encoder.embed(stack_params, token_kt, position_kt).astype(jnp.float32)

    def encode(params: Params, x_ktd: Float[Array, "k t d"]) -> Post:
        count, length, _ = x_ktd.shape
        one_kt = jnp.ones((count, length), jnp.int32)
        position_kt = jnp.broadcast_to(jnp.arange(length)[None], (count, length))
        side = Side(one_kt, one_kt, position_kt)
        batch = Batch(side, side, None, one_kt > 0, jnp.arange(count))
        return density.read(params["posterior"], features(params, batch, None, x_ktd))

    return InputPosterior(
        start, encode, encoder.longest, density.sample, density.log_prob, density.support
    )


def check_vectors(vectors: int, pool: str) -> None:
    """Raises: ValueError for several vectors with a pooling that gives only one."""
    if vectors > 1 and pool != QUERIES:
        raise ValueError(
            f"vectors is {vectors}, but pool {pool} gives one vector per text; set "
            f"pool to {QUERIES}"
        )


def _resampler(encoder: Stack, vectors: int) -> Resampler:
    return Resampler(vectors, getattr(encoder.config, "heads", 1))


def init_queries(encoder: Stack, vectors: int, key: Key[Array, ""]) -> Params:
    """Boxed parameters of the pooling `queries`, stored under `params["posterior"]`."""
    one_bt, x_btd = jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1, encoder.features))
    side = Side(one_bt, one_bt, one_bt)
    return {QUERIES: _resampler(encoder, vectors).init(key, x_btd, side, 1)["params"]}


def pooled(
    encoder: Stack,
    vectors: int,
    params: Params,
    x_btd: Float[Array, "b t d"],
    side: Side,
    slots: int,
) -> Float[Array, "e g d"]:
    """Pools the encoder's last states with queries, in float32 or wider."""
    query_params = params["posterior"][QUERIES]
    h_egd = apply(_resampler(encoder, vectors), query_params, x_btd, side, slots)
    return h_egd.astype(accum_dtype(h_egd.dtype))
