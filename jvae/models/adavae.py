"""AdaVAE: one GPT-2 as un-masked encoder (its first layers) and causal decoder, made a VAE by
adapters, a pooling head and ways for z into the decoder. The stack is meant to stay frozen: what
trains, and from when, says `optim.trainable`.

Source: Tu et al. 2022, arXiv 2205.05862, and the released code. Two mistakes of the released code
are options, off by default: `placement_form="released"` and `pool_scale="sqrt_batch"`. Parameters
of the stack exist once, under `decoder`; `encoder` holds what the encoder alone has.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.latent import amortized
from jvae.latent.gaussian import Gaussian
from jvae.models.common import expander, last_of_prompt, reorderer, unboxed
from jvae.nn import condition, gpt2, pool
from jvae.nn.adapter import Adapter, AdapterInputs, adapted_block
from jvae.nn.attention import own_slot, same_segment, spread
from jvae.nn.condition import Ways
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Projection, apply, fold_key, split_key, uniform_fan_in, wide
from jvae.nn.prefix import Prefix, for_rows
from jvae.nn.stack import init_stack, layer_range

POOLS = ("latent_attn", "averaged_attn", "linear", "mean_max_linear")
POOL_SCALES = ("one", "sqrt_batch")
PLACEMENTS = {  # places of `jvae.nn.adapter`
    "parallel_ffn": frozenset({"hidden"}),
    "parallel_attn": frozenset({"attn"}),
    "sequential_attn": frozenset({"input"}),
    "sequential_ffn": frozenset({"mlp"}),
}
FORMS = ("intended", "released")


@dataclass(frozen=True)
class AdaVaeConfig:
    """Sizes and choices of one AdaVAE; `decoder` is the shared stack.

    encoder_layers: layers that encode. read_end: whether the encoder sees the end token (the
    released code hides it). pool: see `pooled`; pool_scale: "sqrt_batch" divides the logits of
    "latent_attn" by the root of the number of sentences in the batch (released code);
    pool_padding: padding is read and pooled by "linear" and "mean_max_linear" as released, one
    sentence per row. adapter: width of the bottleneck; adapt_encoder, adapt_decoder: whether a side
    has adapters at all; placement, placement_form: where, "released" applies each to the input of
    its layer too. identity_start: adapters start as the identity. use_*: ways for z, see
    `jvae.nn.condition`. prefix: learned slots per layer and side, prefix_middle: width of their
    MLP. log_var_shift: added to the head's log-variance; 0 as published.
    """

    decoder: TransformerConfig
    encoder_layers: int = 8
    latent: int = 32
    read_end: bool = True
    pool: str = "latent_attn"
    pool_scale: str = "one"
    pool_padding: bool = False
    adapter: int = 128
    adapter_scale: float = 1.0
    learn_scale: bool = False
    identity_start: bool = False
    adapt_encoder: bool = True
    adapt_decoder: bool = True
    placement: str = "parallel_ffn"
    placement_form: str = "intended"
    use_psa: bool = True
    use_memory: bool = False
    use_embedding: bool = False
    use_output: bool = False
    use_adapters: bool = False
    vary: bool = False
    prefix: int = 0
    prefix_middle: int = 30
    log_var_shift: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (
            ("pool", POOLS),
            ("pool_scale", POOL_SCALES),
            ("placement", PLACEMENTS),
            ("placement_form", FORMS),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not 1 <= self.encoder_layers <= self.decoder.layers:
            raise ValueError(
                f"encoder_layers is {self.encoder_layers}; the stack has 1 to {self.decoder.layers}"
            )
        if self.latent < 1 or self.adapter < 1 or self.prefix < 0 or self.prefix_middle < 1:
            raise ValueError(
                f"latent {self.latent}, adapter {self.adapter}, prefix {self.prefix}, "
                f"prefix_middle {self.prefix_middle}; expected at least 1, 1, 0 and 1"
            )
        if not self.ways.open:
            raise ValueError("every use_* is off: z would never reach the decoder")
        if self.use_adapters and not self.adapt_decoder:
            raise ValueError("use_adapters needs adapters in the decoder: set adapt_decoder")
        if self.vary and not self.ways.projected:
            raise ValueError("vary is on, but no projection of z: set use_psa or use_memory")
        if self.pool_padding and self.pool not in ("linear", "mean_max_linear"):
            raise ValueError(f"pool_padding is on; the pool {self.pool} never reads padding")

    @property
    def ways(self) -> Ways:
        """The ways for z into the decoder."""
        return Ways(
            psa=self.use_psa,
            memory=self.use_memory,
            embedding=self.use_embedding,
            output=self.use_output,
            adapters=self.use_adapters,
            vary=self.vary,
        )

    @property
    def slots(self) -> int:
        """Slots in front of the tokens of one decoded example."""
        return int(self.use_psa) + int(self.use_memory) + self.prefix

    def places(self, decoder: bool) -> frozenset[str]:
        """Where the adapters of a side are used."""
        places = PLACEMENTS[self.placement]
        if self.placement_form == "released":
            places = places | {"input"}
            if decoder and self.placement == "sequential_attn":
                places = places | {"mlp"}
        return places


def limits(config: AdaVaeConfig) -> dict[str, int]:
    """Most tokens of one example per side; slots take no positions."""
    return {"enc": config.decoder.positions, "dec": config.decoder.positions}


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    x_btd: Array
    prefix: Any
    drop: Key[Array, ""] | None


class _Cache(NamedTuple):
    kv: gpt2.KvCache
    offset_ed: Array | None
    output_ez: Array | None
    adapter_led: Array | None


def _adapter(config: AdaVaeConfig) -> Adapter:
    return Adapter(
        width=config.decoder.width,
        size=config.adapter,
        scale=config.adapter_scale,
        learn_scale=config.learn_scale,
        identity=config.identity_start,
        std=config.decoder.init_std,
    )


def _prefix(config: AdaVaeConfig) -> Prefix:
    return Prefix(config.decoder, config.prefix, config.prefix_middle)


def _head(config: AdaVaeConfig) -> Projection:
    start = nn.initializers.normal(config.decoder.init_std)
    return Projection((2, config.latent), ("embed",), (None, "latent"), kernel_init=start)


def _pooler(config: AdaVaeConfig) -> Projection:
    dec = config.decoder
    if config.pool == "averaged_attn":
        start = nn.initializers.normal(dec.init_std)
        return Projection((), ("embed",), (), use_bias=False, kernel_init=start)
    if config.pool == "latent_attn":
        return Projection((), ("embed",), (), kernel_init=uniform_fan_in(dec.width))
    start = uniform_fan_in(dec.width * (2 if config.pool == "mean_max_linear" else 1))
    return Projection((dec.width,), ("embed",), (None,), kernel_init=start)


def _init(config: AdaVaeConfig, key: Key[Array, ""]) -> Any:
    dec, stack_key = config.decoder, jax.random.fold_in(key, 0)
    ways_key, head_key, pool_key, *side_keys = split_key(key, 7)
    width = dec.width * (2 if config.pool == "mean_max_linear" else 1)
    x = jnp.zeros((1, dec.width))
    params: dict[str, Any] = {
        "encoder": {},
        "posterior": {
            "head": _head(config).init(head_key, x)["params"],
            "pool": _pooler(config).init(pool_key, jnp.zeros((1, width)))["params"],
        },
        "decoder": gpt2.init(dec, stack_key)
        | condition.init(dec, config.ways, config.latent, ways_key),
    }
    for side, layers, adapted, keys in (
        ("encoder", config.encoder_layers, config.adapt_encoder, side_keys[:2]),
        ("decoder", dec.layers, config.adapt_decoder, side_keys[2:]),
    ):
        if adapted:
            params[side]["adapter"] = init_stack(
                lambda k: _adapter(config).init(k, x)["params"], keys[0], layers
            )
        if config.prefix:
            params[side]["prefix"] = _prefix(config).init(keys[1])["params"]
    return {part: tree for part, tree in params.items() if tree}


def without_end(side: Side) -> Side:
    """A side whose examples have lost their last token."""
    next_bt = jnp.pad(side.segment_bt[:, 1:], ((0, 0), (0, 1)))
    return side._replace(segment_bt=jnp.where(side.segment_bt == next_bt, side.segment_bt, 0))


def pooled(
    config: AdaVaeConfig, params: Any, x_btd: Float[Array, "b t d"], side: Side, valid_e: Array
) -> Float[Array, "e d"]:
    """One feature vector per example from the encoder's states.

    "latent_attn" weighs the tokens by softmax(relu(w . x + b)), "averaged_attn" has no b; "linear"
    is tanh(W mean + b), "mean_max_linear" tanh(W [mean; max] + b).
    """
    pooler, own = _pooler(config), params["posterior"]["pool"]
    slots = valid_e.shape[0] // x_btd.shape[0]
    x_btd = x_btd.astype(wide(x_btd.dtype))
    if config.pool in ("latent_attn", "averaged_attn"):
        logit_bt = jax.nn.relu(apply(pooler, own, x_btd))
        if config.pool == "latent_attn" and config.pool_scale == "sqrt_batch":
            sentences = jnp.maximum(jnp.sum(valid_e), 1).astype(logit_bt.dtype)
            logit_bt = logit_bt / jnp.sqrt(sentences)
        return pool.weighted(x_btd, logit_bt, side, slots)
    h_ed = pool.mean(x_btd, side, slots)
    if config.pool == "mean_max_linear":
        h_ed = jnp.concatenate([h_ed, pool.maximum(x_btd, side, slots)], axis=-1)
    return jnp.tanh(apply(pooler, own, h_ed))


def encoded(
    config: AdaVaeConfig, params: Any, batch: Batch, drop: Key[Array, ""] | None = None
) -> tuple[Float[Array, "e d"], Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """Pooled features, states after the final norm, and the output of every encoding layer."""
    dec, side = config.decoder, batch.enc
    assert side is not None  # `limits` asks for the encoder side
    drop_prefix, drop_layers = split_key(drop, 2)
    rows, length = side.token_bt.shape
    side = side if config.read_end else without_end(side)
    mask_bts = same_segment(side)
    if config.pool_padding:
        if batch.slots != 1:
            raise ValueError(
                f"pool_padding with {batch.slots} sentences per row: set data.packing to bucket"
            )
        # Released: padding asks, is pooled, and is never a key.
        mask_bts = jnp.broadcast_to(side.segment_bt[:, None] > 0, (rows, length, length))
        side = side._replace(segment_bt=jnp.ones_like(side.segment_bt))
    prefix = visible_btm = None
    if config.prefix:
        slots = apply(_prefix(config), params["encoder"]["prefix"], drop_prefix)
        prefix = for_rows(*slots, rows, config.encoder_layers)
        visible_btm = jnp.ones((rows, length, config.prefix), bool)
    block, block_l = _block(config, params.get("encoder", {}), decoder=False)
    layers = layer_range(params["decoder"]["layers"], 0, config.encoder_layers)
    hidden_btd, outputs_lbtd = gpt2.encode(
        dec,
        params["decoder"] | {"layers": layers},
        gpt2.embed(dec, params["decoder"], side.token_bt, side.position_bt),
        mask_bts,
        lambda y_btd, _: y_btd,
        drop=drop_layers,
        latent=prefix,
        visible_btm=visible_btm,
        block=block,
        block_l=block_l,
    )
    return pooled(config, params, hidden_btd, side, batch.valid_e), hidden_btd, outputs_lbtd


def _block(
    config: AdaVaeConfig, own: Any, *, decoder: bool, added_led: Array | None = None, to_tokens=None
) -> tuple[gpt2.Block | None, AdapterInputs | None]:
    """The layer of a side and its inputs; None for a side without adapters."""
    if "adapter" not in own:
        return None, None
    places = config.places(decoder)
    block = adapted_block(config.decoder, _adapter(config), places, to_tokens)
    return block, AdapterInputs(own["adapter"], added_led)


def _slots(
    psa: gpt2.LatentKv | None, prefix: gpt2.LatentKv | None, memory: gpt2.LatentKv | None
) -> gpt2.LatentKv | None:
    """All slots of a row, side by side."""
    parts = [part for part in (psa, prefix, memory) if part is not None]
    if not parts:
        return None
    return gpt2.LatentKv(*(jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True)))


def _visible(config: AdaVaeConfig, side: Side, slots: int) -> Array:
    """Slots of the own latent, and every prefix slot."""
    own_bts = own_slot(side, slots)
    shared_btm = jnp.ones((*side.token_bt.shape, config.prefix), bool)
    parts = [own_bts] * int(config.use_psa) + [shared_btm] + [own_bts] * int(config.use_memory)
    return jnp.concatenate(parts, axis=2)


def build(config: AdaVaeConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    dec, ways = config.decoder, config.ways
    init, axes = unboxed(lambda key: _init(config, key))

    def encode(params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: Any) -> Gaussian:
        del cond
        h_ed, _, _ = encoded(config, params, batch, fold_key(drop, 0))
        stats_egcz = apply(_head(config), params["posterior"]["head"], h_ed)[:, None]
        return Gaussian(stats_egcz[:, :, 0], stats_egcz[:, :, 1] + config.log_var_shift)

    def prefix_of(params: Any, drop: Key[Array, ""] | None = None) -> Any:
        if not config.prefix:
            return None
        return apply(_prefix(config), params["decoder"]["prefix"], drop)

    def prefix_slots(prefix: Any, rows: int) -> gpt2.LatentKv | None:
        return None if prefix is None else for_rows(*prefix, rows, dec.layers)

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        drop_prefix, drop_layers = split_key(fold_key(drop, 1), 2)
        x_btd = gpt2.embed(dec, params["decoder"], batch.dec.token_bt, batch.dec.position_bt)
        prefix = prefix_of(params, drop_prefix)
        return _Context(batch.dec, batch.scored_bt, x_btd, prefix, drop_layers)

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        own, side = params["decoder"], ctx.side
        rows = ctx.x_btd.shape[0]
        added = condition.apply(dec, ways, own, z_egz[:, 0], rows)
        x_btd = ctx.x_btd
        if added.offset_ed is not None:
            x_btd = x_btd + spread(added.offset_ed, side)
        block, block_l = _block(
            config,
            own,
            decoder=True,
            added_led=added.adapter_led,
            to_tokens=lambda value_ed: spread(value_ed, side),
        )
        hidden_btd, _ = gpt2.teacher_forced(
            dec,
            own,
            x_btd,
            side,
            _slots(added.psa, prefix_slots(ctx.prefix, rows), added.memory),
            _visible(config, side, z_egz.shape[0] // rows),
            ctx.drop,
            block=block,
            block_l=block_l,
        )
        if added.output_ez is not None:
            z_btz = spread(added.output_ez, side)
            own, hidden_btd = condition.with_output(dec, own, hidden_btd, z_btz)
        return gpt2.token_log_prob(dec, own, hidden_btd, side, ctx.scored_bt)

    def scores(params: Any, hidden_ed: Array, output_ez: Array | None) -> Array:
        own = params["decoder"]
        if output_ez is not None:
            own, hidden_ed = condition.with_output(dec, own, hidden_ed, output_ez)
        return gpt2.logits(dec, own, hidden_ed)

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond
        gpt2.check_room(dec, max_len)
        own = params["decoder"]
        examples, length = prompt.token_et.shape
        added = condition.apply(dec, ways, own, z_egz[:, 0], examples)
        x_etd = gpt2.embed(dec, own, prompt.token_et, _positions(prompt.token_et))
        if added.offset_ed is not None:
            x_etd = x_etd + added.offset_ed[:, None]
        block, block_l = decoding_block(params, added.adapter_led)
        slots = _slots(added.psa, prefix_slots(prefix_of(params), examples), added.memory)
        hidden_etd, kv = gpt2.prefill(dec, own, x_etd, max_len, slots, block=block, block_l=block_l)
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        cache = _Cache(kv, added.offset_ed, added.output_ez, added.adapter_led)
        return scores(params, last_ed, added.output_ez), DecodeState(cache, prompt.length_e)

    def step(params: Any, state: DecodeState, token_e: Array):
        cache, position_e = state.cache, state.position_e
        x_ed = gpt2.embed(dec, params["decoder"], token_e, position_e)
        x_ed = x_ed if cache.offset_ed is None else x_ed + cache.offset_ed
        block, block_l = decoding_block(params, cache.adapter_led)
        place_e = position_e + config.slots
        hidden_ed, kv = gpt2.step(
            dec, params["decoder"], x_ed, cache.kv, place_e, block=block, block_l=block_l
        )
        next_state = DecodeState(cache._replace(kv=kv), position_e + 1)
        return scores(params, hidden_ed, cache.output_ez), next_state

    def decoding_block(params: Any, added_led: Array | None):
        own = params["decoder"]
        each = lambda value_ed: value_ed[:, None]  # noqa: E731
        return _block(config, own, decoder=True, added_led=added_led, to_tokens=each)

    example_axes = _Cache(
        gpt2.KvCache(1, 1),
        0 if config.use_embedding else None,
        0 if config.use_output else None,
        1 if config.use_adapters else None,
    )
    generator = Generator(
        condition=lambda params, batch, drop=None: None,
        sample_prior=amortized.sample_standard(config.latent),
        log_prior=amortized.log_prior_standard,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, z_egz: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
    )
    posterior = amortized.posterior(encode)
    return TextVAE(init, axes, generator, posterior, posterior, (1, config.latent))


def _positions(token_et: Int[Array, "e t"]) -> Int[Array, "e t"]:
    return jnp.broadcast_to(jnp.arange(token_et.shape[1])[None], token_et.shape)
