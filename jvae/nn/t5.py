"""A T5 v1.0 or v1.1 stack for packed rows, encoder or decoder, with latent slots and
cross-attention.

Source: Raffel et al. 2020 (v1.0) and Shazeer 2020 (the gated feed-forward of v1.1). Parameters of a
stack: {embed, layers, bias, norm}, with layers stacked on axis 0, and {head} if the output is not
tied to the embedding. As in the release, encoder and decoder share the embedding.

There are three passes through a stack, as in `jvae.nn.transformer`. The relative bias depends on
positions within segments, never on row indices; a latent slot has the position just before its
segment's first token.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Params, Side
from jvae.nn import cache as caches
from jvae.nn import cross, xent
from jvae.nn.attention import EVERYONE, MaskSpec
from jvae.nn.cache import Caches
from jvae.nn.cross import AttendCross
from jvae.nn.layers import Embedding, Projection, apply, dropout, split_key
from jvae.nn.norms import RmsNorm
from jvae.nn.points import UNTOUCHED, CrossKv, LatentKv, Points, Read
from jvae.nn.stack import init_stack, run_stack, step_stack
from jvae.nn.t5_layer import T5Config, T5Layer, attend, normal, relative_bias


class T5Embeddings(nn.Module):
    """Token embeddings, without absolute positions."""

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


def init(c: T5Config, key: Key[Array, ""], head: bool = True) -> Params:
    """Boxed parameters of a whole stack, with or without an output head."""
    embed_key, body_key, head_key = jax.random.split(key, 3)
    output = init_head(c, head_key) if head else {}
    return init_embed(c, embed_key) | init_body(c, body_key) | output


def init_embed(c: T5Config, key: Key[Array, ""]) -> Params:
    """Boxed parameters {embed}."""
    return {"embed": T5Embeddings(c).init(key, jnp.zeros((1, 1), jnp.int32))["params"]}


def init_head(c: T5Config, key: Key[Array, ""]) -> Params:
    """Boxed parameters {head}; {} if the output is tied to the embedding."""
    return {} if c.tied else {"head": init_embed(c, key)["embed"]["token"]}


def init_body(c: T5Config, key: Key[Array, ""]) -> Params:
    """Boxed parameters {layers, bias, norm}."""
    layers_key, bias_key, norm_key = jax.random.split(key, 3)
    x = jnp.zeros((1, 1, c.width), c.dtype)

    def one_layer(key: Array) -> Params:
        layer_key, kv_key = jax.random.split(key, 2)
        alone = (lambda q: q) if c.cross else None
        params = T5Layer(c).init(layer_key, x, lambda q, k, v: (v, None), alone)["params"]
        if c.cross:
            params["cross"]["kv"] = _cross_kv_projection(c).init(kv_key, x)["params"]
        return params

    table = nn.with_logical_partitioning(normal(c.bias_std or c.width**-0.5), (None, "heads"))
    return {
        "layers": init_stack(one_layer, layers_key, c.layers),
        "bias": {"table": table(bias_key, (c.buckets, c.heads))},
        "norm": RmsNorm(c.norm_eps).init(norm_key, x)["params"],
    }


def embed(
    c: T5Config, params: Params, token: Array, position: Any = None, kind: Any = None
) -> Array:
    """Token embeddings in the compute dtype; `position` and `kind` are ignored."""
    del position, kind
    return apply(T5Embeddings(c), params["embed"], token)


def _finish(c: T5Config, params: Params, x: Array, drop: Key[Array, ""] | None = None) -> Array:
    return dropout(drop, c.dropout, apply(RmsNorm(c.norm_eps), params["norm"], x))


def cross_kv(c: T5Config, params: Params, states_bsd: Float[Array, "b s d"]) -> CrossKv:
    """Cross-attention keys and values of every layer, which depend on the states alone."""
    del c
    return cross.key_values(params["layers"]["cross"]["kv"], states_bsd)


def _cross_hook(
    source: CrossKv | None,
    seen_bts: Array | None,
    drop: Key[Array, ""] | None = None,
    rate: float = 0.0,
) -> AttendCross | None:
    """The cross-attention function of one layer; `source` is that layer's slice."""
    if source is None:
        return None
    assert seen_bts is not None  # set whenever there is a source
    return lambda q: attend(q, *source, seen_bts, drop=drop, rate=rate)


def _seen_by(query_bt: Array, owner_m: Any) -> Bool[Array, "b t m"]:
    own_btm = query_bt[:, :, None] == owner_m[None, None]
    return own_btm | (owner_m == EVERYONE)[None, None]


def rows(
    c: T5Config,
    params: Params,
    x_btd: Float[Array, "b t d"],
    mask_spec: MaskSpec,
    points: Points = UNTOUCHED,
    drop: Key[Array, ""] | None = None,
    *,
    read: Read | None = None,
    read_l: Any = None,
) -> tuple[Float[Array, "b t d"], Any]:
    """States of packed rows after the final norm, and the outputs of `read` for every layer.

    See `jvae.nn.transformer.rows`. A token at position t attends to its slot with the bias of
    distance t + 1.
    """
    drop_embed, drop_layers, drop_last = split_key(drop, 3)
    position_bt = mask_spec.position_bt
    assert position_bt is not None  # every side has positions
    mask_bts = mask_spec.mask()
    distance_bts = position_bt[:, :, None] - position_bt[:, None, :]
    if points.slots is not None:
        visible_btm = _seen_by(mask_spec.query_bt, points.owner_m)
        mask_bts = jnp.concatenate([visible_btm, mask_bts], axis=2)
        slot_btm = jnp.broadcast_to(position_bt[:, :, None] + 1, visible_btm.shape)
        distance_bts = jnp.concatenate([slot_btm, distance_bts], axis=2)
    bias_bnts = relative_bias(c, params, distance_bts, causal=mask_spec.causal)
    source_bts = cross.seen_by_rows(points, mask_spec.query_bt)

    def layer(layer_params, x_btd, xs, key):
        slots, source, value_inputs, tap_inputs, read_inputs = xs
        drop_weights, drop_cross, drop_layer = split_key(key, 3)

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            k, v = _behind(slots, k, v)
            return attend(q, k, v, mask_bts, bias_bnts, drop=drop_weights, rate=c.dropout), None

        hook = _cross_hook(source, source_bts, drop_cross, c.dropout)
        tap = points.tap_of(tap_inputs)
        y_btd, _ = apply(T5Layer(c), layer_params, x_btd, mix, hook, drop_layer, tap)
        return y_btd, None if read is None else read(x_btd, y_btd, read_inputs)

    x_btd = dropout(drop_embed, c.dropout, x_btd)
    x_btd, outputs = run_stack(
        layer,
        params["layers"],
        x_btd,
        (points.slots, points.cross, points.value_l, points.tap_l, read_l),
        drop=drop_layers,
        remat=c.remat,
        unroll=c.unroll,
    )
    return _finish(c, params, x_btd, drop_last), outputs


def _behind(slots: LatentKv | None, k: Array, v: Array) -> tuple[Array, Array]:
    """Prepends one layer's latent slots to its keys and values."""
    if slots is None:
        return k, v
    return (
        jnp.concatenate([slots.key_lbmgh.astype(k.dtype), k], axis=1),
        jnp.concatenate([slots.value_lbmgh.astype(v.dtype), v], axis=1),
    )


def prefill(
    c: T5Config,
    params: Params,
    x_etd: Float[Array, "e t d"],
    length_e: Int[Array, "e"],
    max_len: int,
    points: Points = UNTOUCHED,
) -> tuple[Float[Array, "e t d"], Caches]:
    """States and caches of right-padded prompts.

    The caches have capacity for `max_len` tokens, including padding. Slots come first in the cache,
    all at distance t + 1 from the token at position t.
    """
    length, slots = x_etd.shape[1], points.slot_count
    place_t = jnp.arange(length)
    key_m = jnp.concatenate([jnp.full(slots, -1), place_t])
    distance_ets = place_t[None, :, None] - key_m[None, None]
    bias_ents = relative_bias(c, params, distance_ets, causal=True)

    def layer(layer_params, x, xs, _):
        slot, source, value_inputs, tap_inputs = xs

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            k, v = _behind(slot, k, v)
            return attend(q, k, v, distance_ets >= 0, bias_ents), (k, v)

        hook = _cross_hook(source, cross.seen_by_examples(points))
        tap = points.tap_of(tap_inputs)
        return apply(T5Layer(c), layer_params, x, mix, hook, None, tap)

    x_etd, (key, value) = run_stack(
        layer,
        params["layers"],
        x_etd,
        (points.slots, points.cross, points.value_l, points.tap_l),
        unroll=c.unroll,
    )
    return _finish(c, params, x_etd), caches.filled(key, value, slots, length_e, max_len - length)


def step(
    c: T5Config,
    params: Params,
    x_ed: Float[Array, "e d"],
    kv: Caches,
    position_e: Int[Array, "e"],
    points: Points = UNTOUCHED,
) -> tuple[Float[Array, "e d"], Caches]:
    """Runs one token per example, at position `position_e`.

    Returns its state after the final norm, and the caches with its keys and values.
    """
    position_em = caches.placed(kv, position_e)
    distance_em = position_e[:, None] - position_em
    bias_enm = relative_bias(c, params, distance_em[:, None], causal=True)[:, :, 0]

    def layer(layer_params, x, cache, inputs):
        source, value_inputs, tap_inputs = inputs

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            token = (q[:, 0], k[:, 0], v[:, 0])
            cache_inputs = (cache, kv.place, *token, distance_em >= 0)
            mixed, new = caches.step(*cache_inputs, scale=1.0, bias_enm=bias_enm)
            return mixed[:, None], new

        hook = _cross_hook(source, cross.seen_by_examples(points))
        tap = points.tap_of(tap_inputs)
        return apply(T5Layer(c), layer_params, x, mix, hook, None, tap)

    x, layers = step_stack(
        layer,
        params["layers"],
        x_ed[:, None],
        kv.layers,
        (points.cross, points.value_l, points.tap_l),
    )
    return _finish(c, params, x)[:, 0], Caches(layers, position_em, kv.place + 1)


def _output(c: T5Config, params: Params, hidden: Array) -> tuple[Array, xent.Table]:
    """Hidden states, scaled as needed for a tied output, and the output matrix (V, D)."""
    if "head" in params:
        return hidden, params["head"]["table"]
    return hidden * c.width**-0.5, params["embed"]["token"]["table"]


def with_features(
    c: T5Config, params: Params, hidden: Float[Array, "... d"], feature: Array, table_vc: Array
) -> tuple[Any, Float[Array, "... f"]]:
    """Parameters and states with the scores of `hidden` plus feature . table_vc.

    See `jvae.nn.transformer.with_features`.
    """
    hidden, table_vd = _output(c, params, hidden)
    joined = jnp.concatenate([hidden, feature.astype(hidden.dtype)], axis=-1)
    return {"head": {"table": (table_vd, table_vc)}}, joined


def logits(c: T5Config, params: Params, hidden: Float[Array, "... d"]) -> Array:
    """Scores over the padded vocabulary, float32 or wider, -inf at padded columns."""
    return xent.logits(*_output(c, params, hidden), c.vocab)


def token_log_prob(
    c: T5Config,
    params: Params,
    hidden_btd: Float[Array, "b t d"],
    side: Side,
    scored_bt: Bool[Array, "b t"],
) -> Float[Array, "b t"]:
    """Log p of each scored token at its position, in nats; the state at t-1 predicts token t."""
    hidden_btd, table_vd = _output(c, params, hidden_btd[:, :-1])
    target_bt = side.token_bt[:, 1:]
    nats = xent.token_log_prob(hidden_btd, table_vd, target_bt, c.vocab, c.xent_chunk)
    return jnp.pad(jnp.where(scored_bt[:, 1:], nats, 0.0), ((0, 0), (1, 0)))
