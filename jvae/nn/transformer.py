"""Passes through a stack of transformer layers of any `StackSpec`.

Parameters are passed in, so that two stacks may share all, some or none of them: {embed, layers},
and {norm} and {head} if the stack has a final norm and an untied output head. `stack` binds these
functions to a spec, as `jvae.nn.backbone.Stack`.

Three passes use the same weights: `rows` for packed rows, teacher-forced or bidirectional, and
`prefill` and `step` for stepwise decoding with caches (`jvae.nn.cache`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jvae.api import Params, Side
from jvae.nn import cache as caches
from jvae.nn import cross, xent
from jvae.nn.attention import MaskSpec, Slots, attend, for_everyone, masked, within
from jvae.nn.backbone import Stack
from jvae.nn.block import Layer, cross_kv, norm
from jvae.nn.cache import Caches
from jvae.nn.cross import AttendCross
from jvae.nn.layers import Embedding, apply, dropout, fold_key, split_key, uniform_fan_in
from jvae.nn.norms import LayerNorm
from jvae.nn.points import UNTOUCHED, CrossKv, Points, Read
from jvae.nn.rotary import rotate, turns
from jvae.nn.spec import StackSpec
from jvae.nn.stack import init_stack, run_stack, step_stack


class Embeddings(nn.Module):
    """Token embeddings, plus position and token-type embeddings if the stack has them."""

    spec: StackSpec

    @nn.compact
    def __call__(self, token: Array, position: Array, kind: Array | None = None) -> Array:
        c = self.spec
        init = nn.initializers.normal(c.init_std)
        x = Embedding(c.vocab_padded, c.width, "vocab", c.dtype, init, name="token")(token)
        if c.embed_scale != 1.0:
            x = x * jnp.asarray(c.embed_scale, x.dtype)
        if c.positions:
            rows = c.positions + c.position_offset
            table = Embedding(rows, c.width, "position", c.dtype, init, name="position")
            x = x + table(position + c.position_offset if c.position_offset else position)
        if c.types:
            table = Embedding(c.types, c.width, "type", c.dtype, init, name="type")
            x = x + table(jnp.zeros_like(token) if kind is None else kind)
        if c.embed_norm:
            x = LayerNorm(c.norm_eps, c.norm_bias, name="norm")(x)
        return x


def init(spec: StackSpec, key: Key[Array, ""], head: bool = True) -> Params:
    """Boxed parameters of a whole stack, with or without an output head."""
    embed_key, *body_keys = jax.random.split(key, 3 if spec.final_norm else 2)
    # fold_in keeps the other parameters the same as in a tied stack.
    output = init_head(spec, jax.random.fold_in(key, 3)) if head else {}
    return init_embed(spec, embed_key) | _init_body(spec, *body_keys) | output


def init_embed(spec: StackSpec, key: Key[Array, ""]) -> Params:
    """Boxed parameters {embed}."""
    token = jnp.zeros((1, 1), jnp.int32)
    return {"embed": Embeddings(spec).init(key, token, token)["params"]}


def init_body(spec: StackSpec, key: Key[Array, ""]) -> Params:
    """Boxed parameters {layers}, and {norm} if there is a norm after the last layer."""
    return _init_body(spec, *jax.random.split(key, 2))


def _init_body(
    spec: StackSpec, layers_key: Key[Array, ""], norm_key: Key[Array, ""] | None = None
) -> Params:
    x = jnp.zeros((1, 1, spec.width), spec.dtype)
    groups = spec.heads // spec.kv_heads

    def one_layer(key: Array) -> Params:
        # Attention over a single token returns its value.
        alone = lambda q, k, v: (jnp.repeat(v, groups, axis=2), None)  # noqa: E731
        if not spec.cross:
            return Layer(spec).init(key, x, alone)["params"]
        params = Layer(spec).init(key, x, alone, attend_cross=lambda q: q)["params"]
        params["cross"]["kv"] = cross_kv(spec).init(jax.random.fold_in(key, 1), x)["params"]
        return params

    params = {"layers": init_stack(one_layer, layers_key, spec.layers)}
    if spec.final_norm:
        assert norm_key is not None
        params["norm"] = norm(spec).init(norm_key, x)["params"]
    return params


def init_head(spec: StackSpec, key: Key[Array, ""]) -> Params:
    """Boxed parameters {head} for an output head not tied to the token embedding, else {}."""
    if not spec.own_head:
        return {}
    std = spec.own_head_std
    start = uniform_fan_in(spec.width) if std is None else nn.initializers.normal(std)
    head = Embedding(spec.vocab_padded, spec.width, "vocab", spec.dtype, start)
    return {"head": head.init(key, jnp.zeros((1, 1), jnp.int32))["params"]}


def embed(
    spec: StackSpec, params: Params, token: Array, position: Array, kind: Array | None = None
) -> Array:
    """Input of layer 0 for tokens at these positions, in the compute dtype."""
    return apply(Embeddings(spec), params["embed"], token, position, kind)


def place(spec: StackSpec, params: Params, x: Float[Array, "... d"], position: Array) -> Array:
    """Adds position embeddings to vectors that replace token embeddings."""
    if not spec.positions:
        return x
    table = params["embed"]["position"]["table"].astype(x.dtype)
    return x + jnp.take(table, position + spec.position_offset, axis=0, mode="clip")


def output_table(params: Params) -> xent.Table:
    """The output table: {head} if there is one, else the token embedding."""
    table = params["head"] if "head" in params else params["embed"]["token"]
    return table["table"]


def logits(spec: StackSpec, params: Params, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    """Scores over the padded vocabulary, float32 or wider, -inf at padded columns."""
    return xent.logits(hidden, output_table(params), spec.vocab, cap=spec.score_cap)


def token_log_prob(
    spec: StackSpec,
    params: Params,
    hidden_btd: Float[Array, "b t d"],
    side: Side,
    scored_bt: Bool[Array, "b t"],
) -> Float[Array, "b t"]:
    """Log p of each scored token at its position, in nats; the state at t-1 predicts token t."""
    nats = xent.token_log_prob(
        hidden_btd[:, :-1],
        output_table(params),
        side.token_bt[:, 1:],
        spec.vocab,
        spec.xent_chunk,
        cap=spec.score_cap,
    )
    return jnp.pad(jnp.where(scored_bt[:, 1:], nats, 0.0), ((0, 0), (1, 0)))


def with_features(
    params: Params, hidden: Float[Array, "... d"], feature: Float[Array, "... c"], table_vc: Array
) -> tuple[Any, Float[Array, "... f"]]:
    """Parameters and states with scores hidden . table + feature . table_vc.

    The features are concatenated to the states, so that scores can be computed in chunks of the
    vocabulary. The tables stay apart: the gradient of one array would be that of both, although one
    may be frozen.
    """
    table = output_table(params)
    assert not isinstance(table, tuple)
    joined = jnp.concatenate([hidden, feature.astype(hidden.dtype)], axis=-1)
    return {"head": {"table": (table, table_vc)}}, joined


def _final(spec: StackSpec, params: Params, x: Array) -> Array:
    return apply(norm(spec), params["norm"], x) if spec.final_norm else x


UNBOUNDED = 2**30  # a reach larger than any text


class _Kinds(NamedTuple):
    """Token-dependent inputs of each kind of layer; several kinds are stacked on axis 0."""

    cos: Array | None
    sin: Array | None
    seen: Array | None  # (query, key) mask; None if segments and order determine it


def _kinds(
    spec: StackSpec, position_bt: Array, seen: Callable[[int | None], Array | None]
) -> _Kinds:
    dtype = jnp.dtype(spec.dtype)
    angles = [
        None if kind.rotary is None else turns(kind.rotary, spec.head, position_bt, dtype)
        for kind in spec.kinds
    ]
    if len(spec.kinds) == 1:
        cos, sin = angles[0] or (None, None)
        return _Kinds(cos, sin, seen(spec.kinds[0].reach))
    reaches = (UNBOUNDED if kind.reach is None else kind.reach for kind in spec.kinds)
    masks: list[Any] = [seen(reach) for reach in reaches]
    if any(pair is None for pair in angles):
        return _Kinds(None, None, jnp.stack(masks))
    pairs: list[Any] = angles
    cos, sin = (jnp.stack(parts) for parts in zip(*pairs, strict=True))
    return _Kinds(cos, sin, jnp.stack(masks))


def _of_kind(spec: StackSpec, kinds: _Kinds, kind: Array | None) -> _Kinds:
    return kinds if len(spec.kinds) == 1 else jax.tree.map(lambda a: a[kind], kinds)


def _static(spec: StackSpec, params: Params) -> tuple[Array | None, Array | None]:
    """The kind of each layer, and whether it is layer 0; None if all layers are alike."""
    layers = jax.tree.leaves(params["layers"])[0].shape[0]
    kind_l = jnp.asarray(spec.pattern[:layers], jnp.int32) if len(spec.kinds) > 1 else None
    return kind_l, None if spec.first_norm else jnp.arange(layers) == 0


def _turned(kinds: _Kinds, x: Array) -> Array:
    if kinds.cos is None or kinds.sin is None:
        return x
    return rotate(x, kinds.cos, kinds.sin)


def cross_states(params: Params, state_bsd: Float[Array, "b s d"]) -> CrossKv:
    """Cross-attention keys and values of external states, for every layer."""
    return cross.key_values(params["layers"]["cross"]["kv"], state_bsd)


def _cross_hook(
    spec: StackSpec, source: CrossKv | None, seen_bts: Array | None, drop: Any = None
) -> AttendCross | None:
    """The cross-attention function of one layer; `source` is that layer's slice."""
    if source is None:
        return None
    assert seen_bts is not None  # set whenever there are states
    how: dict[str, Any] = dict(scale=spec.scale, cap=spec.logit_cap, drop=drop, rate=spec.dropout)
    return lambda q: masked(q, *source, seen_bts, **how)


def rows(
    spec: StackSpec,
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

    Args:
      x_btd: output of `embed`.
      mask_spec: attention mask and token positions; see `jvae.nn.attention.segments`.
      read: (input of a layer, its output, slice of `read_l`) -> the value to keep, stacked over
        layers. Pooling here avoids an (L, B, T, D) array.
    """
    drop_embed, drop_layers = split_key(drop, 2)
    x_btd = dropout(drop_embed, spec.dropout, x_btd)
    place_bt = mask_spec.position_bt
    if place_bt is None:
        place_bt = jnp.broadcast_to(jnp.arange(x_btd.shape[1])[None], x_btd.shape[:2])
    kinds = _kinds(
        spec,
        place_bt + points.lead,
        lambda reach: None if reach is None else mask_spec.mask(reach, points.always),
    )
    source_bts = cross.seen_by_rows(points, mask_spec.query_bt)

    def layer(layer_params, x_btd, inputs, key):
        kv, source, value_inputs, tap_inputs, read_inputs, kind, is_first = inputs
        drop_weights, drop_layer = split_key(key, 2)
        slots = None
        if kv is not None:
            assert points.owner_m is not None  # set whenever there are slots
            slots = Slots(kv.key_lbmgh, kv.value_lbmgh, points.owner_m)
        layer_kind = _of_kind(spec, kinds, kind)

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            y = attend(
                *(_turned(layer_kind, q), _turned(layer_kind, k), v, mask_spec, slots),
                seen_bts=layer_kind.seen,
                scale=spec.scale,
                cap=spec.logit_cap,
                drop=drop_weights,
                rate=spec.dropout,
                kernel=spec.attention,
            )
            return y, None

        tap = points.tap_of(tap_inputs)
        hook = _cross_hook(spec, source, source_bts, fold_key(key, 2))
        y_btd, _ = apply(Layer(spec), layer_params, x_btd, mix, drop_layer, tap, is_first, hook)
        return y_btd, None if read is None else read(x_btd, y_btd, read_inputs)

    x_btd, outputs = run_stack(
        layer,
        params["layers"],
        x_btd,
        (points.slots, points.cross, points.value_l, points.tap_l, read_l, *_static(spec, params)),
        drop=drop_layers,
        remat=spec.remat,
        unroll=spec.unroll,
    )
    return _final(spec, params, x_btd), outputs


def prefill(
    spec: StackSpec,
    params: Params,
    x_etd: Float[Array, "e t d"],
    length_e: Int[Array, "e"],
    max_len: int,
    points: Points = UNTOUCHED,
) -> tuple[Float[Array, "e t d"], Caches]:
    """States and caches of right-padded prompts.

    The caches have capacity for `max_len` tokens, including padding.
    """
    examples, length = x_etd.shape[:2]
    one_et = jnp.ones((examples, length), jnp.int32)
    place_et = jnp.broadcast_to(jnp.arange(length)[None], one_et.shape)
    mask_spec = MaskSpec(one_et, one_et, True, place_et)
    slots = points.slot_count
    kinds = _kinds(
        spec,
        place_et + points.lead,
        lambda reach: None if reach is None else mask_spec.mask(reach, points.always),
    )

    def layer(layer_params, x, inputs, _):
        kv, source, value_inputs, tap_inputs, kind, is_first = inputs
        latent = None if kv is None else Slots(kv.key_lbmgh, kv.value_lbmgh, for_everyone(slots))
        layer_kind = _of_kind(spec, kinds, kind)

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            k = _turned(layer_kind, k)
            y = attend(
                *(_turned(layer_kind, q), k, v, mask_spec, latent),
                seen_bts=layer_kind.seen,
                scale=spec.scale,
                cap=spec.logit_cap,
            )
            return y, (k, v)

        tap = points.tap_of(tap_inputs)
        hook = _cross_hook(spec, source, cross.seen_by_examples(points))
        return apply(Layer(spec), layer_params, x, mix, None, tap, is_first, hook)

    x_etd, (key, value) = run_stack(
        layer,
        params["layers"],
        x_etd,
        (points.slots, points.cross, points.value_l, points.tap_l, *_static(spec, params)),
        unroll=spec.unroll,
    )
    if points.slots is not None:
        key = jnp.concatenate([points.slots.key_lbmgh.astype(key.dtype), key], axis=2)
        value = jnp.concatenate([points.slots.value_lbmgh.astype(value.dtype), value], axis=2)
    kv = caches.filled(key, value, slots, length_e, max_len - length)
    return _final(spec, params, x_etd), kv


def step(
    spec: StackSpec,
    params: Params,
    x_ed: Float[Array, "e d"],
    kv: Caches,
    position_e: Int[Array, "e"],
    points: Points = UNTOUCHED,
) -> tuple[Float[Array, "e d"], Caches]:
    """Runs one token per example, at position `position_e` (from 0, not counting slots).

    Returns its state after the final norm, and the caches with its keys and values.
    """
    position_em = caches.placed(kv, position_e)
    visible_em = position_em <= position_e[:, None]

    def seen(reach: int | None) -> Array:
        if reach is None:
            return visible_em
        return visible_em & within(position_e[:, None], position_em, reach, points.always)

    kinds = _kinds(spec, position_e[:, None] + points.lead, seen)
    scale = spec.head**-0.5 if spec.scale is None else spec.scale

    def layer(layer_params, x, cache, inputs):
        source, value_inputs, tap_inputs, kind, is_first = inputs
        layer_kind = _of_kind(spec, kinds, kind)

        def mix(q, k, v):
            v = v if points.value is None else points.value(v, value_inputs)
            q, k = _turned(layer_kind, q), _turned(layer_kind, k)
            assert layer_kind.seen is not None
            token = (q[:, 0], k[:, 0], v[:, 0])
            mixed, new = caches.step(
                *(cache, kv.place, *token, layer_kind.seen),
                scale=scale,
                cap=spec.logit_cap,
                kernel=spec.attention,
            )
            return mixed[:, None], new

        tap = points.tap_of(tap_inputs)
        hook = _cross_hook(spec, source, cross.seen_by_examples(points))
        return apply(Layer(spec), layer_params, x, mix, None, tap, is_first, hook)

    x, layers = step_stack(
        layer,
        params["layers"],
        x_ed[:, None],
        kv.layers,
        (points.cross, points.value_l, points.tap_l, *_static(spec, params)),
    )
    return _final(spec, params, x)[:, 0], Caches(layers, position_em, kv.place + 1)


ENCODER = frozenset({"encode", "layers", "taps", "slots", "values", "low_rank"})
DECODER = ENCODER | {"decode", "tokens", "features"}


def stack(config: Any, spec: StackSpec, longest: int, *, decodes: bool = True) -> Stack:
    """Builds the stack of a spec.

    Args:
      config: the backbone's config.
      longest: see `Stack`.
      decodes: False for a stack that is only an encoder.
    """
    reads = Stack(
        config=config,
        features=spec.width,
        longest=longest,
        init=partial(init, spec),
        init_embed=partial(init_embed, spec),
        init_body=partial(init_body, spec),
        init_head=partial(init_head, spec),
        embed=partial(embed, spec),
        place=partial(place, spec),
        rows=partial(rows, spec),
    )
    if not decodes:
        return reads
    return reads._replace(
        prefill=partial(prefill, spec),
        step=partial(step, spec),
        logits=partial(logits, spec),
        token_log_prob=partial(token_log_prob, spec),
        with_features=with_features,
        cross=cross_states,
    )
