"""T5-VAE: a T5 encoder and decoder with a shared embedding and one Gaussian latent.

The encoder's states are pooled into the latent. In every decoder layer, self-attention has the
latent as an additional key = value.

Source: Park & Lee 2021, arXiv 2108.02446, and the released code, on T5. As released, there is no
cross-attention; `cross_slots` passes z to cross-attention instead of or in addition to
self-attention. Two mistakes of the released code are options, off by default:
`memory_layout="released"` and `pool_padding`. The swap of ids and mask in its input noise is not
reproduced.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Params, Side, TextVAE
from jvae.backbones import small
from jvae.errors import ConfigError
from jvae.fields import Needs, setting
from jvae.injections.contract import Injection, together
from jvae.injections.cross import cross
from jvae.injections.memory import memory
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN, Head
from jvae.latent.priors import STANDARD_NORMAL
from jvae.models import amortized
from jvae.models.amortized import QUERIES, check_vectors, density_of, init_queries, latent_of
from jvae.models.common import projection_head, unboxed, with_prior
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.generator import generator, room
from jvae.models.reading import states
from jvae.nn import config as sizes
from jvae.nn import pool
from jvae.nn.attention import MaskSpec
from jvae.nn.backbone import Stack, StackConfig, abilities_of, stack_of
from jvae.nn.layers import Initializer, Projection, accum_dtype, fold_key
from jvae.nn.points import Read
from jvae.pretrained import originals
from jvae.pretrained.parts import PretrainedPart, pair_part
from jvae.tree import named_leaves

POOLS = ("max", "mean", "first", "last", QUERIES)
LAYOUTS = ("own", "released")


@dataclass(frozen=True)
class T5VaeConfig:
    """Sizes and choices of one T5-VAE.

    `decoder` configures both stacks if there is no `encoder`. They share the token embedding, so a
    separate encoder must have the same width and vocabulary. `memory_layout="released"` reproduces
    a mistake of the released code: in packed rows most sentences read the latent of another; in
    decoding, each reads its own.
    """

    decoder: StackConfig
    encoder: StackConfig | None = None
    latent: int = setting(32, **sizes.LATENT)
    vectors: int = setting(1, **sizes.VECTORS)
    pool: str = setting(
        "max",
        choices=POOLS,
        help="Pooling of the encoder's states; queries: learned queries attend to them.",
    )
    pool_padding: bool = setting(
        False, help="Pool padding too, as released; needs one sentence per row."
    )
    use_memory: bool = setting(True, help="Inject z as a slot of self-attention.")
    memory_layout: str = setting(
        "own",
        choices=LAYOUTS,
        help="Which slots a sentence attends to: its own, or mixed up as released.",
        needs=Needs(lambda c: c.use_memory, "use_memory is false"),
    )
    cross_slots: int = setting(
        0, low=0, high=2**16, help="Cross-attention states per latent vector."
    )
    log_var_shift: float = setting(0.0, **sizes.LOG_VAR_SHIFT)
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN

    def __post_init__(self) -> None:
        check_vectors(self.vectors, self.pool)
        if self.pool_padding and self.pool in ("first", QUERIES):
            raise ValueError(f"pool_padding is on; the pool {self.pool} never reads padding")
        if self.vectors > 1 and self.use_memory and self.memory_layout == "released":
            raise ValueError(
                f"memory_layout is released, which has one slot per sentence; vectors is "
                f"{self.vectors}: set memory_layout to own"
            )
        if not (self.use_memory or self.cross_slots):
            raise ValueError(
                "use_memory is off and cross_slots is 0: z would never reach the decoder"
            )
        if getattr(self.decoder, "cross", False):
            raise ValueError("decoder.cross is on; leave it unset, as cross_slots sets it")
        if self.cross_slots and "cross" not in abilities_of(self.decoder):
            raise ValueError(
                f"cross_slots is {self.cross_slots}, but the decoder has no cross-attention; set "
                "it to 0"
            )


def _stacks(config: T5VaeConfig) -> tuple[Stack, Stack]:
    """Encoder and decoder.

    Raises: ConfigError for stacks that cannot share an embedding or lack an ability.
    """
    decoder_config = config.decoder
    if config.cross_slots:
        decoder_config = dataclasses.replace(decoder_config, cross=True)  # pyright: ignore[reportCallIssue]
    ways = _ways(config, stack_of(decoder_config, "model.decoder", "decode"))
    decoder = stack_of(decoder_config, "model.decoder", *ways.needs)
    if config.encoder is None:
        return stack_of(config.decoder, "model.decoder", "encode"), decoder
    encoder = stack_of(config.encoder, "model.encoder", "encode")
    theirs, ours = (_embedding(stack) for stack in (encoder, decoder))
    if theirs != ours:
        raise ConfigError(
            f"model.encoder embeds with {_listed(theirs)} and model.decoder with {_listed(ours)}, "
            "but both stacks share one embedding; give both the same, or choose a family that does "
            "not share"
        )
    return encoder, decoder


def _embedding(stack: Stack) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda key: nn.unbox(stack.init_embed(key)), jax.random.key(0))
    return {path: leaf.shape for path, leaf in named_leaves(shapes["embed"]).items()}


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{path} {list(shape)}" for path, shape in shapes.items())


def _ways(config: T5VaeConfig, decoder: Stack) -> Injection:
    start, shape, injections = _uniform(config.latent), (config.vectors, config.latent), []
    if config.use_memory:
        released = config.memory_layout == "released"
        injections.append(memory(decoder, shape, start, lead=0, released=released))
    if config.cross_slots:
        injections.append(cross(decoder, shape, start, config.cross_slots))
    return together(injections)


def limits(config: T5VaeConfig) -> dict[str, int]:
    """Maximum tokens per example and side."""
    encoder, decoder = _stacks(config)
    return {"enc": encoder.longest, "dec": room(decoder, _ways(config, decoder))}


def _uniform(width: int) -> Initializer:
    """Uniform within +-width^-1/2, the initialisation of the released layers."""
    edge = width**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -edge, edge)

    return init


def _head(encoder: Stack) -> Head:
    width = encoder.features
    return projection_head(
        width, lambda out, axes: Projection(out, ("embed",), axes, False, _uniform(width))
    )


def _init(config: T5VaeConfig, key: Key[Array, ""]) -> Params:
    stacks_key, head_key, memory_key, source_key = jax.random.split(key, 4)
    embed_key, encoder_key, decoder_key, output_key = jax.random.split(stacks_key, 4)
    encoder, decoder = _stacks(config)
    start, shape = _uniform(config.latent), (config.vectors, config.latent)
    params = decoder.init_embed(embed_key) | {
        "encoder": encoder.init_body(encoder_key),
        "decoder": decoder.init_body(decoder_key) | decoder.init_head(output_key),
        "posterior": density_of(config, _head(encoder)).init(head_key),
    }
    if config.use_memory:
        params["decoder"] |= memory(decoder, shape, start, lead=0).init(memory_key)
    if config.cross_slots:
        params["decoder"] |= cross(decoder, shape, start, config.cross_slots).init(source_key)
    if config.pool == QUERIES:
        queries_key = jax.random.fold_in(head_key, 1)
        params["posterior"] |= init_queries(encoder, config.vectors, queries_key)
    return params


def _with_padding(side: Side, slots: int) -> tuple[Side, MaskSpec]:
    """Makes padding the tail of its row's single sentence.

    Also returns a mask in which padding is used as queries but never as keys.
    """
    if slots != 1:
        raise ValueError(f"pool_padding with {slots} sentences per row: set data.packing to bucket")
    real_bt = side.segment_bt > 0
    length_b1 = jnp.sum(real_bt, axis=1, keepdims=True)
    behind_bt = length_b1 - 1 + jnp.cumsum(~real_bt, axis=1)
    position_bt = jnp.where(real_bt, side.position_bt, behind_bt).astype(side.position_bt.dtype)
    one_bt = jnp.ones_like(side.segment_bt)
    mask_spec = MaskSpec(one_bt, real_bt.astype(one_bt.dtype), False, position_bt)
    return Side(side.token_bt, one_bt, position_bt), mask_spec


def pooled(
    config: T5VaeConfig,
    params: Params,
    side: Side,
    slots: int,
    drop: Key[Array, ""] | None = None,
    read: Read | None = None,
    soft_btd: Float[Array, "b t d"] | None = None,
) -> tuple[Float[Array, "e g d"], Float[Array, "b t d"], Any]:
    """Feature vectors per example, the last states, and the outputs of `read` for every layer."""
    encoder, mask_spec = _stacks(config)[0], None
    if config.pool_padding:
        side, mask_spec = _with_padding(side, slots)
    stack_params = params["encoder"] | {"embed": params["embed"]}
    x_btd, reads = states(
        encoder, stack_params, side, drop, soft_btd=soft_btd, mask_spec=mask_spec, read=read
    )
    if config.pool == QUERIES:
        h_egd = amortized.pooled(encoder, config.vectors, params, x_btd, side, slots)
    else:
        h_egd = pool.BY_NAME[config.pool](x_btd, side, slots)[:, None]
    return h_egd, x_btd, reads


def build(config: T5VaeConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    encoder, decoder = _stacks(config)

    def features(
        params: Params, batch: Batch, drop: Key[Array, ""] | None, soft_btd: Array | None = None
    ) -> Float[Array, "e g d"]:
        assert batch.enc is not None  # `limits` requires the encoder side
        drop = fold_key(drop, 0)
        h_egd, _, _ = pooled(config, params, batch.enc, batch.slots, drop, soft_btd=soft_btd)
        return h_egd.astype(accum_dtype(h_egd.dtype))

    gen = generator(
        decoder,
        _ways(config, decoder),
        lambda params: params["decoder"] | {"embed": params["embed"]},
    )
    latent = latent_of(config, _head(encoder), encoder, features)
    init, axes = unboxed(lambda key: with_prior(_init(config, key), latent.prior, key))
    shape = (config.vectors, config.latent)
    return TextVAE(init, axes, latent.prior.prior, gen, latent.posterior, shape)


def _tiny(vocab: Vocab, **stack: object) -> T5VaeConfig:
    """A tiny config; z is injected into both self- and cross-attention of the decoder."""
    return T5VaeConfig(small.pair(vocab["dec"], **stack), latent=5, cross_slots=3)


def _parts(model: ConfigDict) -> tuple[PretrainedPart, ...]:
    # Both stacks share sizes, tokenizer and embedding, so they are one part.
    return pair_part(model.decoder, model.cross_slots > 0)


FAMILIES.register("t5_vae")(
    Family(
        T5VaeConfig,
        build,
        limits,
        _tiny,
        parts=_parts,
        original=originals.t5_vae,
        preset="t5_vae",
    )
)
