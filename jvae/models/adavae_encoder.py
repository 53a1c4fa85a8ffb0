"""The encoder of AdaVAE, and the adapters and prefixes of encoder and decoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, Params, Side
from jvae.models import amortized
from jvae.models.adavae_config import AdaVaeConfig
from jvae.models.amortized import QUERIES
from jvae.models.reading import states
from jvae.nn import pool
from jvae.nn.adapters import Adapter, AdapterInputs, adapter_tap
from jvae.nn.attention import MaskSpec, for_everyone, segments
from jvae.nn.backbone import Stack, stack_of
from jvae.nn.layers import Projection, accum_dtype, apply, split_key, uniform_fan_in
from jvae.nn.points import Points, Read
from jvae.nn.prefix import Prefix, for_rows
from jvae.nn.stack import layer_range


def encoder_of(config: AdaVaeConfig) -> Stack:
    """The stack that encodes, with all of its layers."""
    where = "model.decoder" if config.encoder is None else "model.encoder"
    return stack_of(
        config.encoding,
        where,
        "encode",
        *(["taps"] if config.adapt_encoder else []),
        *(["slots"] if config.prefix else []),
    )


def adapter_of(config: AdaVaeConfig, stack: Any) -> Adapter:
    """An adapter for a side with the given stack config."""
    return Adapter(
        width=stack.width,
        size=config.adapter,
        scale=config.adapter_scale,
        learn_scale=config.learn_scale,
        identity=config.identity_start,
        std=stack.init_std,
    )


def prefix_of(config: AdaVaeConfig, stack: Any) -> Prefix:
    """The prefix of a side; as published, it covers all layers of the shared stack for both."""
    return Prefix(stack, config.prefix, config.prefix_middle)


def pooler_of(config: AdaVaeConfig) -> Projection:
    """The parameters of the pooling head, see `pooled`."""
    enc = config.encoding
    if config.pool == "averaged_attn":
        start = nn.initializers.normal(enc.init_std)
        return Projection((), ("embed",), (), use_bias=False, kernel_init=start)
    if config.pool == "latent_attn":
        return Projection((), ("embed",), (), kernel_init=uniform_fan_in(enc.width))
    start = uniform_fan_in(enc.width * (2 if config.pool == "mean_max_linear" else 1))
    return Projection((enc.width,), ("embed",), (None,), kernel_init=start)


def without_end(side: Side) -> Side:
    """Removes the last token of every example of a side."""
    next_bt = jnp.pad(side.segment_bt[:, 1:], ((0, 0), (0, 1)))
    return side._replace(segment_bt=jnp.where(side.segment_bt == next_bt, side.segment_bt, 0))


def pooled(
    config: AdaVaeConfig, params: Params, x_btd: Float[Array, "b t d"], side: Side, valid_e: Array
) -> Float[Array, "e g d"]:
    """Pools the encoder's states into feature vectors: several for "queries", otherwise one.

    "latent_attn" weights tokens by softmax(relu(w . x + b)), "averaged_attn" is the same without b,
    "linear" is tanh(W mean + b), and "mean_max_linear" is tanh(W [mean; max] + b).
    """
    slots = valid_e.shape[0] // x_btd.shape[0]
    if config.pool == QUERIES:
        return amortized.pooled(encoder_of(config), config.vectors, params, x_btd, side, slots)
    return _pooled(config, params["posterior"]["pool"], x_btd, side, valid_e)[:, None]


def _pooled(
    config: AdaVaeConfig,
    pool_params: Params,
    x_btd: Float[Array, "b t d"],
    side: Side,
    valid_e: Array,
) -> Float[Array, "e d"]:
    pooler, slots = pooler_of(config), valid_e.shape[0] // x_btd.shape[0]
    x_btd = x_btd.astype(accum_dtype(x_btd.dtype))
    if config.pool in ("latent_attn", "averaged_attn"):
        logit_bt = jax.nn.relu(apply(pooler, pool_params, x_btd))
        if config.pool == "latent_attn" and config.pool_scale == "sqrt_batch":
            sentences = jnp.maximum(jnp.sum(valid_e), 1).astype(logit_bt.dtype)
            logit_bt = logit_bt / jnp.sqrt(sentences)
        return pool.weighted(x_btd, logit_bt, side, slots)
    h_ed = pool.mean(x_btd, side, slots)
    if config.pool == "mean_max_linear":
        h_ed = jnp.concatenate([h_ed, pool.maximum(x_btd, side, slots)], axis=-1)
    return jnp.tanh(apply(pooler, pool_params, h_ed))


def encoded(
    config: AdaVaeConfig,
    params: Params,
    batch: Batch,
    drop: Key[Array, ""] | None = None,
    read: Read | None = None,
    soft_btd: Float[Array, "b t d"] | None = None,
) -> tuple[Float[Array, "e g d"], Float[Array, "b t d"], Any]:
    """Pooled features, states after the final norm, and the outputs of `read` for every layer."""
    stack, side = encoder_of(config), batch.enc
    assert side is not None  # `limits` requires the encoder side
    drop_prefix, drop_layers = split_key(drop, 2)
    rows = side.token_bt.shape[0]
    side = side if config.read_end else without_end(side)
    mask_spec = segments(side, causal=False)
    if config.pool_padding:
        if batch.slots != 1:
            raise ValueError(
                f"pool_padding with {batch.slots} sentences per row: set data.packing to bucket"
            )
        # As released: padding is used as queries and pooled, but never as keys.
        real_bt = (side.segment_bt > 0).astype(jnp.int32)
        side = side._replace(segment_bt=jnp.ones_like(side.segment_bt))
        mask_spec = MaskSpec(side.segment_bt, real_bt, False, side.position_bt)
    encoder_params = params.get("encoder", {})
    points = Points()
    if config.prefix:
        key, value = apply(
            prefix_of(config, config.encoding), encoder_params["prefix"], drop_prefix
        )
        slots = for_rows(key, value, rows, config.encoder_layers)
        points = points._replace(slots=slots, owner_m=for_everyone(config.prefix))
    if config.adapt_encoder:
        tap = adapter_tap(adapter_of(config, config.encoding), config.places(decoder=False))
        points = points._replace(tap=tap, tap_l=AdapterInputs(encoder_params["adapter"]))
    stack_params = params["decoder"] if config.encoder is None else encoder_params
    layers = layer_range(stack_params["layers"], 0, config.encoder_layers)
    hidden_btd, reads = states(
        stack,
        stack_params | {"layers": layers},
        side,
        drop_layers,
        soft_btd=soft_btd,
        mask_spec=mask_spec,
        points=points,
        read=read,
    )
    return pooled(config, params, hidden_btd, side, batch.valid_e), hidden_btd, reads
