"""LSTM-VAE: a recurrent generator with an amortised posterior.

In the generator, z is an input of every step together with the token, and sets the first hidden
state, h_0 = W z + b. Embedding and output layer are untied; dropout applies to inputs and outputs
of the LSTM. Source: Kim et al. 2018, arXiv 1802.02550, and the released code. The short-run model
in `jvae.models.sri` uses the same generator.

The encoder is an LSTM whose last state gives mean and log-variance; it can be replaced by any other
stack that reads text. Deviation: one layer only, as in all published tables.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Params, TextVAE
from jvae.backbones import small
from jvae.fields import setting
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN, Affine, Head
from jvae.latent.priors import STANDARD_NORMAL
from jvae.models import amortized, recurrent
from jvae.models.amortized import QUERIES, check_vectors, init_queries, latent_of
from jvae.models.common import projection_head, unboxed, with_prior
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.reading import states
from jvae.nn import config as sizes
from jvae.nn import pool
from jvae.nn.backbone import Stack, StackConfig, stack_of
from jvae.nn.layers import Projection, accum_dtype, fold_key, split_key

POOLS = ("last", QUERIES)


@dataclass(frozen=True)
class LstmVaeConfig:
    """Sizes of encoder, decoder and latent. Published encoders have `dropout` 0."""

    encoder: StackConfig
    decoder: StackConfig
    latent: int = setting(32, **sizes.LATENT)
    vectors: int = setting(1, **sizes.VECTORS)
    pool: str = setting(
        "last",
        choices=POOLS,
        help="Pooling of the encoder's states; queries: learned queries attend to them.",
    )
    log_var_shift: float = setting(0.0, **sizes.LOG_VAR_SHIFT)
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN

    def __post_init__(self) -> None:
        check_vectors(self.vectors, self.pool)


def _stacks(config: LstmVaeConfig) -> tuple[Stack, Stack]:
    encoder = stack_of(config.encoder, "model.encoder", "encode")
    return encoder, stack_of(config.decoder, "model.decoder", "recurrent")


def _head(encoder: Stack) -> Head:
    if encoder.recurrent is None:
        start = nn.initializers.normal(encoder.config.init_std)
        return projection_head(
            encoder.features, lambda out, axes: Projection(out, ("embed",), axes, True, start)
        )
    uniform = encoder.recurrent.uniform

    def head(outputs: tuple[int, ...], axes: tuple[str | None, ...]) -> Affine:
        def init(key: Key[Array, "..."]) -> Params:
            # A pair of keys, or a single key from a density with several heads.
            kernel_key, bias_key = key if key.ndim else jax.random.split(key)
            shape = (encoder.features, *outputs)
            return {
                "kernel": uniform(kernel_key, shape, ("embed", *axes)),
                "bias": uniform(bias_key, outputs, axes),
            }

        def affine(params: Params, h_ed: Float[Array, "e d"]) -> Array:
            return jnp.tensordot(h_ed, params["kernel"], axes=1) + params["bias"][None]

        return Affine(init, affine)

    return head


def limits(config: LstmVaeConfig) -> dict[str, int]:
    """Maximum tokens per example and side."""
    encoder, decoder = _stacks(config)
    return {"enc": encoder.longest, "dec": decoder.longest}


def build(config: LstmVaeConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    encoder, decoder = _stacks(config)
    size = config.vectors * config.latent

    def init_boxed(key: Key[Array, ""]) -> Params:
        encoder_key, decoder_key = split_key(key, 2)
        keys = split_key(encoder_key, 4)
        head_key = keys[2] if encoder.recurrent is None else jnp.stack(list(keys[2:]))
        params = {
            "decoder": recurrent.init(decoder, size, decoder_key),
            "encoder": encoder.init_embed(keys[0]) | encoder.init_body(keys[1]),
            "posterior": latent.density.init(head_key),
        }
        if config.pool == QUERIES:
            queries_key = jax.random.fold_in(encoder_key, 4)
            params["posterior"] |= init_queries(encoder, config.vectors, queries_key)
        return with_prior(params, latent.prior, key)

    def features(
        params: Params, batch: Batch, drop: Key[Array, ""] | None, soft_btd: Array | None = None
    ) -> Float[Array, "e g f"]:
        side, slots = batch.enc, batch.slots
        assert side is not None  # `limits` requires the encoder side
        encoder_params = params["encoder"]
        hidden_btf, _ = states(encoder, encoder_params, side, fold_key(drop, 0), soft_btd=soft_btd)
        if config.pool == QUERIES:
            return amortized.pooled(encoder, config.vectors, params, hidden_btf, side, slots)
        last_ef = pool.last_token(hidden_btf, side, slots)
        return last_ef.astype(accum_dtype(last_ef.dtype))[:, None]

    latent = latent_of(config, _head(encoder), encoder, features)
    init, axes = unboxed(init_boxed)
    gen, shape = recurrent.generator(decoder, size), (config.vectors, config.latent)
    return TextVAE(init, axes, latent.prior.prior, gen, latent.posterior, shape)


def _tiny(vocab: Vocab, **stack: object) -> LstmVaeConfig:
    sides = (small.recurrent(vocab[side], **stack) for side in ("enc", "dec"))
    return LstmVaeConfig(*sides, latent=5)


FAMILIES.register("lstm_vae")(Family(LstmVaeConfig, build, limits, _tiny, preset="lstm_vae"))
