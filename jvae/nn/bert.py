"""BERT as an encoder of packed rows: embeddings, post-norm layers, no pooler. Source: Devlin et al.
2019.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Side
from jvae.nn.attention import attend, segments
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Embedding, LayerNorm, apply, dropout, split_key
from jvae.nn.stack import init_stack, run_stack
from jvae.nn.transformer import BertLayer

TOKEN_TYPES = 2


class BertEmbeddings(nn.Module):
    """Token + position + type embeddings, then layer norm; without token types all are type 0."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, side: Side) -> Array:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        x = Embedding(c.vocab_padded, c.width, "vocab", c.dtype, init, name="token")(side.token_bt)
        x = x + Embedding(c.positions, c.width, "position", c.dtype, init, name="position")(
            side.position_bt
        )
        kind = Embedding(TOKEN_TYPES, c.width, "type", c.dtype, init, name="type")
        x = x + kind(jnp.zeros_like(side.token_bt) if side.type_bt is None else side.type_bt)
        return LayerNorm(c.norm_eps, name="norm")(x)


def init(config: TransformerConfig, key: Key[Array, ""]) -> Any:
    """Boxed parameters {embed, layers}."""
    embed_key, layers_key = jax.random.split(key, 2)
    token = jnp.zeros((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, config.width), config.dtype)
    layer = BertLayer(config)
    return {
        "embed": BertEmbeddings(config).init(embed_key, Side(token, token, token))["params"],
        "layers": init_stack(
            lambda k: layer.init(k, x, lambda q, k, v: (v, None))["params"],
            layers_key,
            config.layers,
        ),
    }


def encode(
    config: TransformerConfig,
    params: Any,
    side: Side,
    drop: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """States after the last layer, and the input of every layer (the embedding output first)."""
    drop_embed, drop_layers = split_key(drop, 2)
    x_btd = apply(BertEmbeddings(config), params["embed"], side)
    x_btd = dropout(drop_embed, config.dropout, x_btd)
    mask_spec = segments(side, causal=False)

    def layer(layer_params, x_btd, _, key):
        drop_weights, drop_layer = split_key(key, 2)

        def mix(q, k, v):
            rate, kernel = config.dropout, config.attention
            return attend(q, k, v, mask_spec, drop=drop_weights, rate=rate, kernel=kernel), None

        y_btd, _ = apply(BertLayer(config), layer_params, x_btd, mix, drop_layer)
        return y_btd, x_btd

    return run_stack(
        layer,
        params["layers"],
        x_btd,
        drop=drop_layers,
        remat=config.remat,
        unroll=config.unroll,
    )
