"""Optimus: an encoder, a decoder, and a latent as attention memory and embedding offset.

Source: Li et al. 2020, arXiv 2004.04092, and the released code, with BERT and GPT-2; any stacks
that read and write text can replace these. Deviations: the encoder never attends to padding (the
released likelihood, MI and AU functions drop that mask); the injection flags are part of the config
and therefore of every checkpoint; the "deterministic" mode is called `log_var="unit"`, as it is a
posterior with unit variance.

With `context_layers` it models responses to a source text, the context: SpaceFusion, see
`jvae.models.space_fusion`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Cond, Params, Side, TextVAE
from jvae.backbones import small
from jvae.fields import Needs, setting
from jvae.injections.contract import Injection, together
from jvae.injections.embedding import embedding
from jvae.injections.memory import memory
from jvae.injections.softmax import softmax
from jvae.injections.tokens import tokens
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN, Head
from jvae.latent.priors import STANDARD_NORMAL
from jvae.models import amortized, space_fusion
from jvae.models.amortized import QUERIES, check_vectors, density_of, init_queries, latent_of
from jvae.models.common import projection_head, unboxed, with_prior
from jvae.models.family import FAMILIES, Copy, Family, Vocab
from jvae.models.generator import generator, room
from jvae.models.reading import states
from jvae.nn import config as sizes
from jvae.nn import pool
from jvae.nn.attention import segments
from jvae.nn.backbone import Stack, StackConfig, stack_of
from jvae.nn.layers import Initializer, Projection, accum_dtype, apply, fold_key
from jvae.pretrained import originals
from jvae.pretrained.parts import PretrainedPart, stack_part

POOLS = ("cls", "mean", "max", "last", QUERIES)
LOG_VARIANCES = ("learned", "unit")


@dataclass(frozen=True)
class OptimusConfig:
    """Sizes and choices of one Optimus. `log_var="unit"` is `fb_mode=2` of the released code."""

    encoder: StackConfig
    decoder: StackConfig
    latent: int = setting(32, **sizes.LATENT)
    vectors: int = setting(1, **sizes.VECTORS)
    use_memory: bool = setting(True, help="Inject z as a key and value in every decoder layer.")
    use_embedding: bool = setting(True, help="Add z to every input embedding of the decoder.")
    tokens: int = setting(0, low=0, high=2**16, help="Prefix tokens per latent vector; 0: none.")
    pool: str = setting(
        "cls",
        choices=POOLS,
        help="cls: a tanh layer on the first state, as published; mean, max or last of the states; "
        "queries: learned queries attend to the states.",
    )
    causal_encoder: bool = setting(
        False,
        help="Let the encoder's tokens attend only to earlier ones, as in a decoder.",
    )
    log_var: str = setting(
        "learned", choices=LOG_VARIANCES, help="unit: a posterior of variance 1."
    )
    log_var_shift: float = setting(
        0.0,
        **sizes.LOG_VAR_SHIFT,
        needs=Needs(lambda c: c.log_var == "learned", "log_var is unit"),
    )
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN
    use_softmax: bool = setting(False, help="Add z to the output scores of every token.")
    context_layers: int = setting(
        0,
        low=0,
        high=4_096,
        help="Last encoder layers with a second copy for the source (SpaceFusion); 0: no source.",
    )
    between_noise: float = setting(
        0.1,
        low=0.0,
        high=1e3,
        help="Standard deviation of noise on points between the latents of source and text.",
        needs=Needs(lambda c: c.context_layers > 0, "context_layers is 0"),
    )
    push_margin: float = setting(
        1.0,
        low=0.0,
        high=1e3,
        help="Latents this far from all others, times the root of latent, are not pushed apart.",
        needs=Needs(lambda c: c.context_layers > 0, "context_layers is 0"),
    )

    def __post_init__(self) -> None:
        check_reached(self)
        check_vectors(self.vectors, self.pool)
        if self.context_layers:
            _check_context(self)


def _check_context(config: OptimusConfig) -> None:
    layers = getattr(config.encoder, "layers", 0)
    if config.context_layers > layers:
        raise ValueError(
            f"context_layers is {config.context_layers}, but the encoder has {layers} layers"
        )
    if config.prior != STANDARD_NORMAL or config.posterior.kind != "gaussian":
        raise ValueError(
            "context_layers is on, so the source determines the prior, and the posterior is a "
            "Gaussian; set prior.kind to standard_normal and posterior.kind to gaussian"
        )


class InjectionConfig(Protocol):
    """The fields of a model's config that describe its decoder and how z reaches it."""

    @property
    def decoder(self) -> StackConfig: ...

    @property
    def latent(self) -> int: ...

    @property
    def vectors(self) -> int: ...

    @property
    def use_memory(self) -> bool: ...

    @property
    def use_embedding(self) -> bool: ...

    @property
    def use_softmax(self) -> bool: ...

    @property
    def tokens(self) -> int: ...


def check_reached(config: InjectionConfig) -> None:
    """Raises: ValueError if all injections of z into the decoder are off."""
    if not (config.use_memory or config.use_embedding or config.use_softmax or config.tokens):
        raise ValueError(
            "use_memory, use_embedding and use_softmax are all off and tokens is 0: z would never "
            "reach the decoder"
        )


def ways(stack: Stack, config: InjectionConfig) -> dict[str, Injection]:
    """The enabled injections, by the name of their parameters."""
    start, shape = _normal(stack.config), (config.vectors, config.latent)
    injections = {}
    if config.use_memory:
        injections["memory"] = memory(stack, shape, start, lead=1)
    if config.use_embedding:
        injections["offset"] = embedding(stack, shape, start)
    if config.tokens:
        injections["tokens"] = tokens(stack, shape, start, config.tokens)
    if config.use_softmax:
        injections["softmax"] = softmax(stack, shape, start)
    return injections


def decoder_of(config: InjectionConfig) -> tuple[Stack, Injection]:
    """The decoder stack and the injection of z into it.

    Raises: ConfigError for a stack that does not support the injection.
    """
    stack = stack_of(config.decoder, "model.decoder", "decode")
    injection = together(list(ways(stack, config).values()))
    return stack_of(config.decoder, "model.decoder", *injection.needs), injection


def init_decoder(
    config: InjectionConfig,
    decoder_key: Key[Array, ""],
    memory_key: Key[Array, ""],
    offset_key: Key[Array, ""],
) -> Params:
    """Boxed parameters of the stack of `decoder_of` and of its injections."""
    stack, _ = decoder_of(config)
    keys = {"memory": memory_key, "offset": offset_key}
    keys |= {name: jax.random.fold_in(memory_key, i) for i, name in ((1, "tokens"), (2, "softmax"))}
    params = stack.init(decoder_key)
    for name, injection in ways(stack, config).items():
        params |= injection.init(keys[name])
    return params


def limits(config: OptimusConfig) -> dict[str, int]:
    """Maximum tokens per example and side, after any vectors in front of the text."""
    encoder = stack_of(config.encoder, "model.encoder", "encode")
    sides = {"enc": encoder.longest, "dec": room(*decoder_of(config))}
    return sides | {"cond": encoder.longest} if config.context_layers else sides


def _normal(stack: Any) -> Initializer:
    return nn.initializers.normal(stack.init_std)


def _init(config: OptimusConfig, encoder: Stack, key: Key[Array, ""]) -> Params:
    encoder_key, decoder_key, pooler_key, head_key, memory_key, offset_key = jax.random.split(
        key, 6
    )
    params = {
        "encoder": encoder.init(encoder_key, head=False),
        "posterior": density_of(config, _head(encoder)).init(head_key),
        "decoder": init_decoder(config, decoder_key, memory_key, offset_key),
    }
    if config.pool == "cls":
        state = jnp.zeros((1, encoder.features))
        params["posterior"]["pooler"] = _pooler(encoder).init(pooler_key, state)["params"]
    if config.pool == QUERIES:
        params["posterior"] |= init_queries(encoder, config.vectors, pooler_key)
    if config.context_layers:
        copied = jax.tree.map(
            lambda box: box.replace(value=space_fusion.last(box.value, config.context_layers)),
            params["encoder"]["layers"],
            is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
        )
        params[space_fusion.NAME] = {"layers": copied}
    return params


def _head(encoder: Stack) -> Head:
    start = _normal(encoder.config)
    return projection_head(
        encoder.features, lambda out, axes: Projection(out, ("embed",), axes, False, start)
    )


def _pooler(encoder: Stack) -> Projection:
    start = _normal(encoder.config)
    return Projection((encoder.features,), ("embed",), (None,), kernel_init=start)


def pooled(
    config: OptimusConfig, params: Params, x_btd: Float[Array, "b t d"], side: Side, slots: int
) -> Float[Array, "e d"]:
    """One feature vector per example from the encoder's last states."""
    if config.pool != "cls":
        return pool.BY_NAME[config.pool](x_btd, side, slots)
    first_ed = pool.first_token(x_btd, side, slots)
    encoder = stack_of(config.encoder, "model.encoder")
    return jnp.tanh(apply(_pooler(encoder), params["posterior"]["pooler"], first_ed))


def build(config: OptimusConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    encoder = stack_of(config.encoder, "model.encoder", "encode")

    def read(
        params: Params,
        stack_params: Params,
        side: Side,
        slots: int,
        drop: Key[Array, ""] | None,
        soft_btd: Array | None = None,
    ) -> Float[Array, "e g d"]:
        mask_spec = segments(side, causal=config.causal_encoder)
        x_btd, _ = states(encoder, stack_params, side, drop, soft_btd=soft_btd, mask_spec=mask_spec)
        if config.pool == QUERIES:
            return amortized.pooled(encoder, config.vectors, params, x_btd, side, slots)
        h_ed = pooled(config, params, x_btd, side, slots)
        return h_ed.astype(accum_dtype(h_ed.dtype))[:, None]

    def features(
        params: Params, batch: Batch, drop: Key[Array, ""] | None, soft_btd: Array | None = None
    ) -> Float[Array, "e g d"]:
        assert batch.enc is not None  # `limits` requires the encoder side
        encoder_params, drop = params["encoder"], fold_key(drop, 0)
        return read(params, encoder_params, batch.enc, batch.slots, drop, soft_btd)

    def condition(params: Params, batch: Batch, drop: Key[Array, ""] | None = None) -> Cond:
        if batch.cond is None:
            raise ValueError("a conditional model needs the `cond` side of the batch, the source")
        layers = space_fusion.branch(
            params["encoder"]["layers"], params[space_fusion.NAME]["layers"]
        )
        stack_params, side = params["encoder"] | {"layers": layers}, space_fusion.turns(batch.cond)
        h_egd = read(params, stack_params, side, batch.slots, fold_key(drop, 2))
        return latent.density.read(params["posterior"], h_egd)

    latent = latent_of(config, _head(encoder), encoder, features)
    init, axes = unboxed(lambda key: with_prior(_init(config, encoder, key), latent.prior, key))
    gen, prior = generator(*decoder_of(config)), latent.prior.prior
    if config.context_layers:
        aux = partial(space_fusion.aux, gen, config.between_noise, config.push_margin)
        gen = gen._replace(condition=condition, aux=aux, coupled=True)
        prior = space_fusion.prior()
    return TextVAE(
        init=init,
        axes=axes,
        prior=prior,
        gen=gen,
        post=latent.posterior,
        latent_shape=(config.vectors, config.latent),
    )


def _tiny(vocab: Vocab, **stack: object) -> OptimusConfig:
    sides = small.encoder(vocab["enc"], **stack), small.decoder(vocab["dec"], **stack)
    return OptimusConfig(*sides, latent=5)


def _parts(model: ConfigDict) -> tuple[PretrainedPart, ...]:
    pooler = "posterior/pooler" if model.pool == "cls" else None
    return stack_part(model.encoder, "encoder", pooler) + stack_part(model.decoder, "decoder")


def _copies(config: OptimusConfig) -> tuple[Copy, ...]:
    """Initialises the layers that read the context from the encoder's last layers."""
    if not config.context_layers:
        return ()
    layers: int = config.encoder.layers  # pyright: ignore[reportAttributeAccessIssue]
    return (
        Copy(f"{space_fusion.NAME}/layers/", "encoder/layers/", layers - config.context_layers),
    )


FAMILIES.register("optimus")(
    Family(
        OptimusConfig,
        build,
        limits,
        _tiny,
        parts=_parts,
        original=originals.optimus,
        preset="optimus",
        copies=_copies,
    )
)
