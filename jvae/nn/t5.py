"""T5 v1.0 and v1.1 for packed rows: encoder, decoder with optional latent slot and
cross-attention.

Source: Raffel et al. 2020 (v1.0) and Shazeer 2020 (the gated feed-forward of v1.1). One tree serves
both stacks: {embed: token table, encoder: {layers, bias, norm}, decoder: {layers, bias, norm,
head}}, layers stacked on axis 0; `head` exists only where the output is not tied to `embed`.

Three ways through the decoder, as in `gpt2`: `teacher_forced` for rows, `prefill` and `step` for
stepwise decoding with caches. The relative bias is a function of positions in segments,
never of row indices; a latent slot stands one place before its segment's first token.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Side
from jvae.nn import cache as caches
from jvae.nn import xent
from jvae.nn.attention import causal, same_segment
from jvae.nn.cache import Caches
from jvae.nn.gpt2 import LatentKv
from jvae.nn.layers import Embedding, Projection, apply, dropout, split_key
from jvae.nn.stack import init_stack, run_stack, step_stack
from jvae.nn.t5_layer import AttendCross, RmsNorm, T5Config, T5Layer, attend, normal, relative_bias


class CrossKv(NamedTuple):
    """Keys and values that every decoder layer makes of the encoder's states."""

    key_lbsnh: Float[Array, "l b s n h"]
    value_lbsnh: Float[Array, "l b s n h"]


class T5Embeddings(nn.Module):
    """Token embeddings; there are no absolute positions."""

    config: T5Config

    @nn.compact
    def __call__(self, token: Array) -> Array:
        c = self.config
        return Embedding(c.vocab_padded, c.width, "vocab", c.dtype, normal(1.0), name="token")(
            token
        )


def _cross_kv_projection(c: T5Config) -> Projection:
    axes = (None, "heads", "head")
    return Projection((2, c.heads, c.head), ("embed",), axes, False, normal(c.width**-0.5))


def init(encoder: T5Config, decoder: T5Config, key: Key[Array, ""]) -> Any:
    """Boxed parameters {embed, encoder, decoder}; the stacks share the token embedding."""
    embed_key, encoder_key, decoder_key, head_key = jax.random.split(key, 4)
    token = jnp.zeros((1, 1), jnp.int32)
    params = {
        "embed": T5Embeddings(encoder).init(embed_key, token)["params"],
        "encoder": _init_stack(encoder, encoder_key),
        "decoder": _init_stack(decoder, decoder_key),
    }
    if not decoder.tied:
        params["decoder"]["head"] = T5Embeddings(decoder).init(head_key, token)["params"]["token"]
    return params


def _init_stack(c: T5Config, key: Key[Array, ""]) -> Any:
    layers_key, bias_key, norm_key = jax.random.split(key, 3)
    x = jnp.zeros((1, 1, c.width), c.dtype)

    def one_layer(key: Array) -> Any:
        layer_key, kv_key = jax.random.split(key, 2)
        cross = (lambda q: q) if c.cross else None
        params = T5Layer(c).init(layer_key, x, lambda q, k, v: (v, None), cross)["params"]
        if c.cross:
            params["cross"]["kv"] = _cross_kv_projection(c).init(kv_key, x)["params"]
        return params

    table = nn.with_logical_partitioning(normal(c.bias_std or c.width**-0.5), (None, "heads"))
    return {
        "layers": init_stack(one_layer, layers_key, c.layers),
        "bias": {"table": table(bias_key, (c.buckets, c.heads))},
        "norm": RmsNorm(c.norm_eps).init(norm_key, x)["params"],
    }


def embed(config: T5Config, params: Any, token: Int[Array, "..."]) -> Array:
    """Token embeddings in the compute dtype."""
    return apply(T5Embeddings(config), params["embed"], token)


def _finish(c: T5Config, stack: Any, x: Array, drop: Key[Array, ""] | None = None) -> Array:
    return dropout(drop, c.dropout, apply(RmsNorm(c.norm_eps), stack["norm"], x))


def encode(
    config: T5Config,
    params: Any,
    side: Side,
    drop: Key[Array, ""] | None = None,
    mask_bts: Bool[Array, "b t s"] | None = None,
) -> tuple[Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """States after the final norm, and the input of every layer (the embeddings first).

    Args:
      mask_bts: True where the key may be seen; every segment sees itself when None.
    """
    c, stack = config, params["encoder"]
    drop_embed, drop_layers, drop_last = split_key(drop, 3)
    mask_bts = same_segment(side) if mask_bts is None else mask_bts
    distance_bts = side.position_bt[:, :, None] - side.position_bt[:, None, :]
    bias_bnts = relative_bias(c, stack, distance_bts, causal=False)

    def layer(layer_params, x_btd, _, key):
        drop_weights, drop_layer = split_key(key, 2)

        def mix(q, k, v):
            return attend(q, k, v, mask_bts, bias_bnts, drop=drop_weights, rate=c.dropout), None

        y_btd, _ = apply(T5Layer(c), layer_params, x_btd, mix, drop=drop_layer)
        return y_btd, x_btd

    x_btd = dropout(drop_embed, c.dropout, embed(c, params, side.token_bt))
    x_btd, inputs_lbtd = run_stack(
        layer, stack["layers"], x_btd, drop=drop_layers, remat=c.remat, unroll=c.unroll
    )
    return _finish(c, stack, x_btd, drop_last), inputs_lbtd


def cross_kv(config: T5Config, params: Any, states_bsd: Float[Array, "b s d"]) -> CrossKv:
    """Cross-attention keys and values of every decoder layer: they depend on the source alone."""
    kernel = params["decoder"]["layers"]["cross"]["kv"]["kernel"].astype(states_bsd.dtype)
    kv = jnp.einsum("bsd,ldcnh->clbsnh", states_bsd, kernel)
    return CrossKv(kv[0], kv[1])


def _cross_hook(
    cross: CrossKv | None,
    seen_bts: Array | None,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
) -> AttendCross | None:
    """`cross` is one layer's slice."""
    if cross is None:
        return None
    assert seen_bts is not None  # comes with the source
    return lambda q: attend(q, *cross, seen_bts, drop=drop, rate=rate)


def teacher_forced(
    config: T5Config,
    params: Any,
    x_btd: Float[Array, "b t d"],
    side: Side,
    latent: LatentKv | None = None,
    visible_btm: Bool[Array, "b t m"] | None = None,
    cross: CrossKv | None = None,
    source_bts: Bool[Array, "b t s"] | None = None,
    drop: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """States after the final norm, and the input of every layer.

    Args:
      x_btd: input embeddings.
      latent, visible_btm: latent slots and the tokens that see them; a token at position t sees its
        slot with the bias of distance t + 1.
      cross, source_bts: keys and values of the source and who sees them; without them the
        cross-attention sub-layers are skipped.
    """
    c, stack = config, params["decoder"]
    drop_embed, drop_layers, drop_last = split_key(drop, 3)
    mask_bts = causal(side)
    distance_bts = side.position_bt[:, :, None] - side.position_bt[:, None, :]
    if visible_btm is not None:
        mask_bts = jnp.concatenate([visible_btm, mask_bts], axis=2)
        slot_btm = jnp.broadcast_to(side.position_bt[:, :, None] + 1, visible_btm.shape)
        distance_bts = jnp.concatenate([slot_btm, distance_bts], axis=2)
    bias_bnts = relative_bias(c, stack, distance_bts, causal=True)

    def layer(layer_params, x_btd, xs, key):
        slots, source = xs
        drop_weights, drop_cross, drop_layer = split_key(key, 3)

        def mix(q, k, v):
            k, v = _behind(slots, k, v)
            return attend(q, k, v, mask_bts, bias_bnts, drop=drop_weights, rate=c.dropout), None

        hook = _cross_hook(source, source_bts, drop_cross, c.dropout)
        y_btd, _ = apply(T5Layer(c), layer_params, x_btd, mix, hook, drop_layer)
        return y_btd, x_btd

    x_btd = dropout(drop_embed, c.dropout, x_btd)
    x_btd, inputs_lbtd = run_stack(
        layer,
        stack["layers"],
        x_btd,
        (latent, cross),
        drop=drop_layers,
        remat=c.remat,
        unroll=c.unroll,
    )
    return _finish(c, stack, x_btd, drop_last), inputs_lbtd


def _behind(slots: LatentKv | None, k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values of one layer with its latent slots in front."""
    if slots is None:
        return k, v
    return (
        jnp.concatenate([slots.key_lbmnh.astype(k.dtype), k], axis=1),
        jnp.concatenate([slots.value_lbmnh.astype(v.dtype), v], axis=1),
    )


def prefill(
    config: T5Config,
    params: Any,
    x_etd: Float[Array, "e t d"],
    length_e: Int[Array, "e"],
    max_len: int,
    latent: LatentKv | None = None,
    cross: CrossKv | None = None,
    source_es: Bool[Array, "e s"] | None = None,
) -> tuple[Float[Array, "e t d"], Caches]:
    """States of right-padded prompts and the caches they leave, with room for `max_len` tokens,
    padding included.

    Args:
      latent: at most one slot per example, in place 0 of its cache.
      cross, source_es: each example's source and its real tokens.
    """
    c, stack = config, params["decoder"]
    length = x_etd.shape[1]
    slots = _slots(latent)
    place_t = jnp.arange(length) + slots
    distance_ets = place_t[None, :, None] - jnp.arange(length + slots)[None, None]
    bias_ents = relative_bias(c, stack, distance_ets, causal=True)

    def layer(layer_params, x, xs, _):
        slot, source = xs

        def mix(q, k, v):
            k, v = _behind(slot, k, v)
            return attend(q, k, v, distance_ets >= 0, bias_ents), (k, v)

        hook = _cross_hook(source, None if source_es is None else source_es[:, None])
        return apply(T5Layer(c), layer_params, x, mix, hook)

    x_etd, (key, value) = run_stack(layer, stack["layers"], x_etd, (latent, cross), unroll=c.unroll)
    return _finish(c, stack, x_etd), caches.filled(key, value, slots, length_e, max_len - length)


def _slots(latent: LatentKv | None) -> int:
    slots = 0 if latent is None else latent.key_lbmnh.shape[2]
    if slots > 1:
        raise ValueError(f"{slots} latent slots per example; stepwise decoding has place for one")
    return slots


def step(
    config: T5Config,
    params: Any,
    x_ed: Float[Array, "e d"],
    kv: Caches,
    position_e: Int[Array, "e"],
    cross: CrossKv | None = None,
    source_es: Bool[Array, "e s"] | None = None,
) -> tuple[Float[Array, "e d"], Caches]:
    """One token per example, the one of `position_e` among its own: its state after the final norm,
    and the caches with its keys and values.
    """
    c, stack = config, params["decoder"]
    position_em = caches.placed(kv, position_e)
    distance_em = position_e[:, None] - position_em
    bias_enm = relative_bias(c, stack, distance_em[:, None], causal=True)[:, :, 0]

    def layer(layer_params, x, cache, source):
        def mix(q, k, v):
            new = caches.put(cache, kv.place, k[:, 0], v[:, 0])
            look = functools.partial(caches.look_up, scale=1.0, bias_enm=bias_enm)
            return look(q[:, 0], new, distance_em >= 0)[:, None], new

        hook = _cross_hook(source, None if source_es is None else source_es[:, None])
        return apply(T5Layer(c), layer_params, x, mix, hook)

    x, layers = step_stack(layer, stack["layers"], x_ed[:, None], kv.layers, cross)
    return _finish(c, stack, x)[:, 0], Caches(layers, position_em, kv.place + 1)


def _output(config: T5Config, params: Any, hidden: Array) -> tuple[Array, Array]:
    """Hidden states as the output matrix wants them, and that matrix (V, D)."""
    if not config.tied:
        return hidden, params["decoder"]["head"]["table"]
    return hidden * config.width**-0.5, params["embed"]["token"]["table"]


def logits(config: T5Config, params: Any, hidden: Float[Array, "... d"]) -> Array:
    """Scores over the padded vocabulary, float32 or wider, -inf at padded columns."""
    return xent.logits(*_output(config, params, hidden), config.vocab)


def token_log_prob(
    config: T5Config,
    params: Any,
    hidden_btd: Float[Array, "b t d"],
    side: Side,
    scored_bt: Bool[Array, "b t"],
) -> Float[Array, "b t"]:
    """Nats of each scored token at its own place: the state at t-1 predicts the token at t."""
    hidden_btd, table_vd = _output(config, params, hidden_btd[:, :-1])
    target_bt = side.token_bt[:, 1:]
    nats = xent.token_log_prob(hidden_btd, table_vd, target_bt, config.vocab, config.xent_chunk)
    return jnp.pad(jnp.where(scored_bt[:, 1:], nats, 0.0), ((0, 0), (1, 0)))
