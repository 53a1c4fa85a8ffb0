"""GPT-2 as a decoder of packed rows, with room for latent slots in every layer. Source: Radford et
al. 2019.

Four ways through the same weights: `teacher_forced` for rows, `prefill` and `step` for stepwise
decoding with caches (`jvae.nn.cache`), `encode` for rows under any other mask.

A decoder may change the attention values of its layers: `fuse(value_btnh, inputs) -> value_btnh`
gets the layer's own slice of `fuse_l`, a tree with the layers in front. Caches hold fused values.

A model may put its own layer around the same weights: `block(params, x, attend, inputs, drop) ->
(y, output of attend)` takes the place of `plain_block` and gets its layer's slice of `block_l`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.api import Side
from jvae.nn import cache as caches
from jvae.nn import xent
from jvae.nn.attention import MaskSpec, Slots, attend, for_everyone, segments
from jvae.nn.cache import Caches
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Embedding, LayerNorm, apply, dropout, split_key, uniform_fan_in
from jvae.nn.stack import init_stack, run_stack, step_stack
from jvae.nn.transformer import Attend, Gpt2Layer

Fuse = Callable[[Array, Any], Array]
Read = Callable[[Array, Any], Any]
Block = Callable[[Any, Array, Attend, Any, Key[Array, ""] | None], tuple[Array, Any]]


class LatentKv(NamedTuple):
    """Latent slots of every layer, M per row or example."""

    key_lbmnh: Float[Array, "l b m n h"]
    value_lbmnh: Float[Array, "l b m n h"]


class Gpt2Embeddings(nn.Module):
    """Token + position embeddings."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, token: Array, position: Array) -> Array:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        x = Embedding(c.vocab_padded, c.width, "vocab", c.dtype, init, name="token")(token)
        return x + Embedding(c.positions, c.width, "position", c.dtype, init, name="position")(
            position
        )


def init(config: TransformerConfig, key: Key[Array, ""], tie_head: bool = True) -> Any:
    """Boxed parameters {embed, layers, norm}; the output head is the token embedding, or a table of
    its own, {head}, started uniform within 1 / sqrt(width).
    """
    embed_key, layers_key, norm_key = jax.random.split(key, 3)
    token = jnp.zeros((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, config.width), config.dtype)
    layer = Gpt2Layer(config)
    params = {
        "embed": Gpt2Embeddings(config).init(embed_key, token, token)["params"],
        "layers": init_stack(
            lambda k: layer.init(k, x, lambda q, k, v: (v, None))["params"],
            layers_key,
            config.layers,
        ),
        "norm": LayerNorm(config.norm_eps).init(norm_key, x)["params"],
    }
    if not tie_head:
        uniform = uniform_fan_in(config.width)
        head = Embedding(config.vocab_padded, config.width, "vocab", config.dtype, uniform)
        # Folded, so that the other parameters are those of the tied model.
        params["head"] = head.init(jax.random.fold_in(key, 3), token)["params"]
    return params


def output_table(params: Any) -> Float[Array, "v d"]:
    """The output head: a table of its own where there is one, else the token embedding."""
    table = params["head"] if "head" in params else params["embed"]["token"]
    return table["table"]


def check_room(config: TransformerConfig, places: int) -> None:
    """Raises ValueError when more places are asked for than the position table has rows."""
    if places > config.positions:
        raise ValueError(f"{places} positions asked for; the decoder has {config.positions}")


def embed(config: TransformerConfig, params: Any, token: Array, position: Array) -> Array:
    """Token + position embeddings in the compute dtype."""
    return apply(Gpt2Embeddings(config), params["embed"], token, position)


def plain_block(config: TransformerConfig) -> Block:
    """The layer itself; it has no inputs of its own."""
    layer = Gpt2Layer(config)
    return lambda params, x, attend, inputs, drop: apply(layer, params, x, attend, drop)


def _final_norm(config: TransformerConfig, params: Any, x: Array) -> Array:
    return apply(LayerNorm(config.norm_eps), params["norm"], x)


def logits(config: TransformerConfig, params: Any, hidden: Float[Array, "... d"]) -> Array:
    """Scores over the padded vocabulary, float32 or wider, -inf at padded columns."""
    return xent.logits(hidden, output_table(params), config.vocab)


def token_log_prob(
    config: TransformerConfig, params: Any, hidden_btd: Float[Array, "b t d"], side: Side, scored_bt
) -> Float[Array, "b t"]:
    """Nats of each scored token at its own place: the state at t-1 predicts the token at t."""
    table_vd = output_table(params)
    target_bt = side.token_bt[:, 1:]
    nats = xent.token_log_prob(
        hidden_btd[:, :-1], table_vd, target_bt, config.vocab, config.xent_chunk
    )
    return jnp.pad(jnp.where(scored_bt[:, 1:], nats, 0.0), ((0, 0), (1, 0)))


def _through_layers(
    config: TransformerConfig,
    params: Any,
    x_btd: Array,
    mask_spec: MaskSpec,
    drop: Key[Array, ""] | None,
    read: Callable[[Array, Array, Any], Any],
    read_l: Any = None,
    latent: LatentKv | None = None,
    owner_m: np.ndarray | None = None,
    fuse: Fuse | None = None,
    fuse_l: Any = None,
    block: Block | None = None,
    block_l: Any = None,
) -> tuple[Array, Any]:
    """States after the final norm, and read(input, output, slice of `read_l`) of every layer."""
    block = block or plain_block(config)
    drop_embed, drop_layers = split_key(drop, 2)
    x_btd = dropout(drop_embed, config.dropout, x_btd)

    def layer(layer_params, x_btd, inputs, key):
        kv, fuse_inputs, read_inputs, block_inputs = inputs
        drop_weights, drop_layer = split_key(key, 2)
        slots = None
        if kv is not None:
            assert owner_m is not None  # comes with the slots
            slots = Slots(kv.key_lbmnh, kv.value_lbmnh, owner_m)

        def mix(q, k, v):
            v = v if fuse is None else fuse(v, fuse_inputs)
            rate, kernel = config.dropout, config.attention
            y = attend(q, k, v, mask_spec, slots, drop=drop_weights, rate=rate, kernel=kernel)
            return y, None

        y_btd, _ = block(layer_params, x_btd, mix, block_inputs, drop_layer)
        return y_btd, read(x_btd, y_btd, read_inputs)

    x_btd, outputs = run_stack(
        layer,
        params["layers"],
        x_btd,
        (latent, fuse_l, read_l, block_l),
        drop=drop_layers,
        remat=config.remat,
        unroll=config.unroll,
    )
    return _final_norm(config, params, x_btd), outputs


def teacher_forced(
    config: TransformerConfig,
    params: Any,
    x_btd: Float[Array, "b t d"],
    side: Side,
    latent: LatentKv | None = None,
    owner_m: Int[np.ndarray, "m"] | None = None,
    drop: Key[Array, ""] | None = None,
    *,
    fuse: Fuse | None = None,
    fuse_l: Any = None,
    block: Block | None = None,
    block_l: Any = None,
) -> tuple[Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """States after the final norm, and the input of every layer.

    Args:
      x_btd: input embeddings.
      latent, owner_m: latent slots and the segments that see them; see `jvae.nn.attention`.
      fuse, fuse_l: change the values of every layer; see the top of this file.
      block, block_l: take the place of every layer; see there.
    """
    return _through_layers(
        config,
        params,
        x_btd,
        segments(side, causal=True),
        drop,
        lambda x_btd, y_btd, _: x_btd,
        latent=latent,
        owner_m=owner_m,
        fuse=fuse,
        fuse_l=fuse_l,
        block=block,
        block_l=block_l,
    )


def encode(
    config: TransformerConfig,
    params: Any,
    x_btd: Float[Array, "b t d"],
    mask_spec: MaskSpec,
    read: Read,
    read_l: Any = None,
    drop: Key[Array, ""] | None = None,
    *,
    latent: LatentKv | None = None,
    owner_m: Int[np.ndarray, "m"] | None = None,
    block: Block | None = None,
    block_l: Any = None,
) -> tuple[Float[Array, "b t d"], Any]:
    """States after the final norm, and what `read` makes of every layer.

    Args:
      x_btd: input embeddings.
      mask_spec: which tokens see which; `segments(side, causal=False)` for a bidirectional encoder.
      read: (output of a layer before any norm, the layer's slice of `read_l`) -> output, stacked
        over the layers. Only what it returns is kept, so a pooled layer costs no (L, B, T, D).
      latent, owner_m, block, block_l: as in `teacher_forced`.
    """
    return _through_layers(
        config,
        params,
        x_btd,
        mask_spec,
        drop,
        lambda x, y_btd, r: read(y_btd, r),
        read_l,
        latent=latent,
        owner_m=owner_m,
        block=block,
        block_l=block_l,
    )


def prefill(
    config: TransformerConfig,
    params: Any,
    x_etd: Float[Array, "e t d"],
    length_e: Int[Array, "e"],
    max_len: int,
    latent: LatentKv | None = None,
    *,
    fuse: Fuse | None = None,
    fuse_l: Any = None,
    block: Block | None = None,
    block_l: Any = None,
) -> tuple[Float[Array, "e t d"], Caches]:
    """States of right-padded prompts and the caches they leave, with room for `max_len` tokens,
    padding included.
    """
    block = block or plain_block(config)
    examples, length = x_etd.shape[:2]
    slots = 0 if latent is None else latent.key_lbmnh.shape[2]
    one_et = jnp.ones((examples, length), jnp.int32)
    mask_spec = MaskSpec(one_et, one_et, causal=True)

    def layer(layer_params, x, inputs, _):
        kv, fuse_inputs, block_inputs = inputs
        latent_slots = None
        if kv is not None:
            latent_slots = Slots(kv.key_lbmnh, kv.value_lbmnh, for_everyone(slots))

        def mix(q, k, v):
            v = v if fuse is None else fuse(v, fuse_inputs)
            return attend(q, k, v, mask_spec, latent_slots), (k, v)

        return block(layer_params, x, mix, block_inputs, None)

    x_etd, (key, value) = run_stack(
        layer, params["layers"], x_etd, (latent, fuse_l, block_l), unroll=config.unroll
    )
    if latent is not None:
        key = jnp.concatenate([latent.key_lbmnh.astype(key.dtype), key], axis=2)
        value = jnp.concatenate([latent.value_lbmnh.astype(value.dtype), value], axis=2)
    kv = caches.filled(key, value, slots, length_e, max_len - length)
    return _final_norm(config, params, x_etd), kv


def step(
    config: TransformerConfig,
    params: Any,
    x_ed: Float[Array, "e d"],
    kv: Caches,
    position_e: Int[Array, "e"],
    *,
    fuse: Fuse | None = None,
    fuse_l: Any = None,
    block: Block | None = None,
    block_l: Any = None,
) -> tuple[Float[Array, "e d"], Caches]:
    """One token per example, the one of `position_e` among its own (from 0, slots do not count):
    its state after the final norm, and the caches with its keys and values.
    """
    block = block or plain_block(config)
    position_em = caches.placed(kv, position_e)
    visible_em = position_em <= position_e[:, None]

    def layer(layer_params, x, cache, inputs):
        fuse_inputs, block_inputs = inputs

        def mix(q, k, v):
            v = v if fuse is None else fuse(v, fuse_inputs)
            new = caches.put(cache, kv.place, k[:, 0], v[:, 0])
            scale = config.head**-0.5
            return caches.look_up(q[:, 0], new, visible_em, scale=scale)[:, None], new

        return block(layer_params, x, mix, block_inputs, None)

    x, layers = step_stack(layer, params["layers"], x_ed[:, None], kv.layers, (fuse_l, block_l))
    return _final_norm(config, params, x)[:, 0], Caches(layers, position_em, kv.place + 1)
