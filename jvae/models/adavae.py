"""AdaVAE: a pretrained stack with adapters as both encoder and decoder of a VAE.

The first layers of the stack are a bidirectional encoder, and the whole stack is the causal
decoder. Adapters, a pooling head and injections of z into the decoder make it a VAE. The stack is
meant to stay frozen; `optim.trainable` selects which parameters train, and from when.

Source: Tu et al. 2022, arXiv 2205.05862, and the released code, on GPT-2. Two mistakes of the
released code are options, off by default: `placement_form="released"` and
`pool_scale="sqrt_batch"`. Parameters of the stack are stored once, under `decoder`. `encoder` has
only the encoder's own parameters, including its stack if it has a separate one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Params, TextVAE
from jvae.backbones import small
from jvae.injections.contract import Injection
from jvae.injections.ways import all_ways
from jvae.latent.densities import Head
from jvae.models.adavae_config import AdaVaeConfig
from jvae.models.adavae_encoder import adapter_of, encoded, encoder_of, pooler_of, prefix_of
from jvae.models.amortized import QUERIES, density_of, init_queries, latent_of
from jvae.models.common import projection_head, unboxed, with_prior
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.generator import generator, room
from jvae.nn.backbone import Stack, stack_of
from jvae.nn.layers import Projection, fold_key
from jvae.nn.stack import init_stack
from jvae.pretrained import originals
from jvae.pretrained.parts import PretrainedPart, stack_part


def decoder_of(config: AdaVaeConfig) -> tuple[Stack, Injection]:
    """The decoder stack and the injection of z into it.

    Raises: ConfigError for a stack that does not support the injection.
    """
    stack = stack_of(config.decoder, "model.decoder", "decode")
    adapter = adapter_of(config, config.decoder) if config.adapt_decoder else None
    prefix = prefix_of(config, config.decoder) if config.prefix else None
    injection = all_ways(
        stack,
        config.ways,
        (config.vectors, config.latent),
        adapter=adapter,
        places=config.places(decoder=True),
        prefix=prefix,
    )
    return stack_of(config.decoder, "model.decoder", *injection.needs), injection


def limits(config: AdaVaeConfig) -> dict[str, int]:
    """Maximum tokens per example and side; slots take up no positions."""
    return {"enc": encoder_of(config).longest, "dec": room(*decoder_of(config))}


def _head(config: AdaVaeConfig) -> Head:
    start = nn.initializers.normal(config.encoding.init_std)
    return projection_head(
        config.encoding.width,
        lambda out, axes: Projection(out, ("embed",), axes, kernel_init=start),
    )


def _init(config: AdaVaeConfig, key: Key[Array, ""]) -> Params:
    # These equal the first two keys of the split (see `DRAW_STREAM`). Other keys would change the
    # untrained model, which is the baseline of stored runs.
    stack_key, encoder_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    ways_key, head_key, pool_key, *side_keys = jax.random.split(key, 7)
    enc, (stack, injection) = config.encoding, decoder_of(config)
    if config.pool == QUERIES:
        pool = init_queries(encoder_of(config), config.vectors, pool_key)
    else:
        width = enc.width * (2 if config.pool == "mean_max_linear" else 1)
        pool = {"pool": pooler_of(config).init(pool_key, jnp.zeros((1, width)))["params"]}
    params: dict[str, Params] = {
        "encoder": {}
        if config.encoder is None
        else encoder_of(config).init(encoder_key, head=False),
        "posterior": density_of(config, _head(config)).init(head_key) | pool,
        "decoder": stack.init(stack_key) | injection.init(ways_key),
    }
    for side, sizes, layers, adapted, keys in (
        ("encoder", enc, config.encoder_layers, config.adapt_encoder, side_keys[:2]),
        ("decoder", stack.config, stack.config.layers, config.adapt_decoder, side_keys[2:]),
    ):
        if adapted:
            adapter, x = adapter_of(config, sizes), jnp.zeros((1, sizes.width))
            params[side]["adapter"] = init_stack(
                lambda k, adapter=adapter, x=x: adapter.init(k, x)["params"], keys[0], layers
            )
        if config.prefix:
            params[side]["prefix"] = prefix_of(config, sizes).init(keys[1])["params"]
    return {part: tree for part, tree in params.items() if tree}


def build(config: AdaVaeConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    encoder = encoder_of(config)

    def features(
        params: Params, batch: Batch, drop: Key[Array, ""] | None, soft_btd: Array | None = None
    ) -> Float[Array, "e g d"]:
        return encoded(config, params, batch, fold_key(drop, 0), soft_btd=soft_btd)[0]

    latent = latent_of(config, _head(config), encoder, features)
    init, axes = unboxed(lambda key: with_prior(_init(config, key), latent.prior, key))
    gen, shape = generator(*decoder_of(config)), (config.vectors, config.latent)
    return TextVAE(init, axes, latent.prior.prior, gen, latent.posterior, shape)


def _tiny(vocab: Vocab, **stack: object) -> AdaVaeConfig:
    decoder = small.decoder(vocab["dec"], **stack)
    return AdaVaeConfig(decoder, encoder_layers=1, latent=5, adapter=3, prefix_middle=3)


def _parts(model: ConfigDict) -> tuple[PretrainedPart, ...]:
    encoder = stack_part(model.encoder, "encoder") if model.get("encoder") else ()
    return encoder + stack_part(model.decoder, "decoder")


def _adjust(model: ConfigDict) -> list[str]:
    """Limits `encoder_layers` to the layers of the stack."""
    stack = model.get("encoder") or model.decoder
    if model.encoder_layers <= stack.get("layers", 0):
        return []
    was, model.encoder_layers = model.encoder_layers, stack.layers
    return [f"model.encoder_layers={was} is lowered to {stack.layers}, all layers of the encoder"]


FAMILIES.register("adavae")(
    Family(
        AdaVaeConfig,
        build,
        limits,
        _tiny,
        parts=_parts,
        adjust=_adjust,
        original=originals.adavae,
        preset="adavae",
    )
)
