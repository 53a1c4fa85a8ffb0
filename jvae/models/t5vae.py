"""T5-VAE: a T5 whose encoder states are pooled into one Gaussian latent, and whose decoder finds
the latent as one more key = value of its self-attention in every layer.

Source: Park & Lee 2021, arXiv 2108.02446, and the released code. As released there is no
cross-attention; `cross_slots` gives z to it instead, or as well. Of the mistakes of the released
code two are options, off by default: `memory_layout="released"` and `pool_padding`. The swap of ids
and mask in its input noise is absent.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.fields import Needs, setting
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN, Density, amortized, build_density
from jvae.latent.priors import STANDARD_NORMAL, build_prior
from jvae.models.common import (
    KV_AXES,
    expander,
    grower,
    last_of_prompt,
    projection_head,
    reorderer,
    unboxed,
    with_prior,
)
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.nn import config as stack
from jvae.nn import pool, t5
from jvae.nn.attention import own_slot
from jvae.nn.cache import Caches
from jvae.nn.layers import Initializer, Projection, accum_dtype, apply, fold_key
from jvae.nn.stack import init_stack
from jvae.nn.t5_layer import T5Config
from jvae.pretrained import originals
from jvae.pretrained import t5 as t5_weights
from jvae.pretrained.names import NameTable
from jvae.pretrained.names import Vocab as WeightVocab
from jvae.pretrained.parts import PretrainedPart

POOLS: dict[str, Callable[[Array, Side, int], Array]] = {
    "max": pool.maximum,
    "mean": pool.mean,
    "first": pool.first_token,
}
LAYOUTS = ("own", "released")
UNBOUNDED = 2**31 - 1  # relative positions serve sentences of any length


@dataclass(frozen=True)
class T5VaeConfig:
    """Sizes and choices of one T5-VAE.

    `decoder`: sizes of both stacks, which share the token embedding. `memory_layout`: "released"
    deals the slots out among the sentences of a batch, so that few get their own; when decoding,
    each has its own.
    """

    decoder: T5Config
    latent: int = setting(32, **stack.LATENT)
    pool: str = setting("max", choices=tuple(POOLS), help="Over the encoder's last states.")
    pool_padding: bool = setting(
        False, help="Padding is pooled too (released), one sentence per row."
    )
    use_memory: bool = setting(True, help="z as a slot of self-attention.")
    memory_layout: str = setting(
        "own",
        choices=LAYOUTS,
        help="Whose slots a sentence reads.",
        needs=Needs(lambda c: c.use_memory, "use_memory is false"),
    )
    cross_slots: int = setting(
        0, low=0, high=2**16, help="States that z gives to cross-attention; 0: none."
    )
    log_var_shift: float = setting(0.0, **stack.LOG_VAR_SHIFT)
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN

    def __post_init__(self) -> None:
        if self.pool_padding and self.pool == "first":
            raise ValueError("pool_padding is on; the pool first never reads padding")
        if not (self.use_memory or self.cross_slots):
            raise ValueError(
                "use_memory is off and cross_slots is 0: z would never reach the decoder"
            )
        if self.decoder.cross:
            raise ValueError("decoder.cross is on; it follows from cross_slots, which sets it")


def limits(config: T5VaeConfig) -> dict[str, int]:
    """Most tokens of one example per side: there is no limit."""
    del config
    return {"enc": UNBOUNDED, "dec": UNBOUNDED}


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    x_btd: Array
    drop: Key[Array, ""] | None


class _Cache(NamedTuple):
    kv: Caches
    cross: t5.CrossKv | None


def _uniform(width: int) -> Initializer:
    """Between plus and minus width^-1/2, as the released layers start."""
    edge = width**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -edge, edge)

    return init


def _density(config: T5VaeConfig) -> Density:
    width = config.decoder.width
    head = projection_head(
        width, lambda out, axes: Projection(out, ("embed",), axes, False, _uniform(width))
    )
    choice = config.posterior.with_defaults("gaussian", log_var_shift=config.log_var_shift)
    return build_density(choice, head, config.latent)


def _memory(config: T5VaeConfig) -> Projection:
    dec, start = config.decoder, _uniform(config.latent)
    return Projection((dec.heads, dec.head), ("latent",), ("heads", "head"), False, start)


def _source(config: T5VaeConfig) -> Projection:
    features = (config.cross_slots, config.decoder.width)
    return Projection(features, ("latent",), (None, "embed"), False, _uniform(config.latent))


def _init(config: T5VaeConfig, dec: T5Config, key: Key[Array, ""]) -> Any:
    stacks_key, head_key, memory_key, source_key = jax.random.split(key, 4)
    z = jnp.zeros((1, config.latent))
    params = t5.init(config.decoder, dec, stacks_key)
    params["posterior"] = _density(config).init(head_key)
    if config.use_memory:
        params["decoder"]["memory"] = init_stack(
            lambda k: _memory(config).init(k, z)["params"], memory_key, dec.layers
        )
    if config.cross_slots:
        params["decoder"]["source"] = _source(config).init(source_key, z)["params"]
    return params


def _with_padding(side: Side, slots: int) -> tuple[Side, Bool[Array, "b t s"]]:
    """The side with padding as the tail of its row's one sentence, and a mask in which it asks but
    is never a key.
    """
    if slots != 1:
        raise ValueError(f"pool_padding with {slots} sentences per row: set data.packing to bucket")
    real_bt = side.segment_bt > 0
    length_b1 = jnp.sum(real_bt, axis=1, keepdims=True)
    behind_bt = length_b1 - 1 + jnp.cumsum(~real_bt, axis=1)
    position_bt = jnp.where(real_bt, side.position_bt, behind_bt).astype(side.position_bt.dtype)
    mask_bts = jnp.broadcast_to(real_bt[:, None], (*real_bt.shape, real_bt.shape[1]))
    return Side(side.token_bt, jnp.ones_like(side.segment_bt), position_bt), mask_bts


def pooled(
    config: T5VaeConfig, params: Any, side: Side, slots: int, drop: Key[Array, ""] | None = None
) -> tuple[Float[Array, "e d"], Float[Array, "b t d"], Float[Array, "l b t d"]]:
    """One feature vector per example; the encoder's last states; the inputs of its layers."""
    mask_bts = None
    if config.pool_padding:
        side, mask_bts = _with_padding(side, slots)
    x_btd, inputs_lbtd = t5.encode(config.decoder, params, side, drop, mask_bts)
    return POOLS[config.pool](x_btd, side, slots), x_btd, inputs_lbtd


def build(config: T5VaeConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    dec = dataclasses.replace(config.decoder, cross=config.cross_slots > 0)
    prior = build_prior(config.prior, (1, config.latent))
    init, axes = unboxed(lambda key: with_prior(_init(config, dec, key), prior, key))

    def features(
        params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: Any
    ) -> Float[Array, "e d"]:
        del cond
        assert batch.enc is not None  # `limits` asks for the encoder side
        h_ed, _, _ = pooled(config, params, batch.enc, batch.slots, fold_key(drop, 0))
        return h_ed.astype(accum_dtype(h_ed.dtype))

    def memory(params: Any, z_ez: Array, rows: int, layout: str) -> t5.LatentKv | None:
        """The slots of every layer, key = value."""
        if not config.use_memory:
            return None
        kernel_lznh = params["decoder"]["memory"]["kernel"].astype(dec.dtype)
        slot_elnh = jnp.einsum("ez,lznh->elnh", z_ez.astype(dec.dtype), kernel_lznh)
        if layout == "released":
            slot_lenh = slot_elnh.reshape(dec.layers, -1, dec.heads, dec.head)
        else:
            slot_lenh = jnp.moveaxis(slot_elnh, 0, 1)
        slot_lbmnh = slot_lenh.reshape(dec.layers, rows, -1, dec.heads, dec.head)
        return t5.LatentKv(slot_lbmnh, slot_lbmnh)

    def source(params: Any, z_ez: Array, rows: int) -> t5.CrossKv | None:
        """What z gives to the cross-attention of every layer."""
        if not config.cross_slots:
            return None
        state_esd = apply(_source(config), params["decoder"]["source"], z_ez.astype(dec.dtype))
        return t5.cross_kv(dec, params, state_esd.reshape(rows, -1, dec.width))

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        x_btd = t5.embed(dec, params, batch.read_bt)
        return _Context(batch.dec, batch.scored_bt, x_btd, fold_key(drop, 1))

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        z_ez, rows = z_egz[:, 0], ctx.x_btd.shape[0]
        own_bts = own_slot(ctx.side, z_ez.shape[0] // rows)
        hidden_btd, _ = t5.teacher_forced(
            dec,
            params,
            ctx.x_btd,
            ctx.side,
            memory(params, z_ez, rows, config.memory_layout),
            own_bts if config.use_memory else None,
            source(params, z_ez, rows),
            jnp.repeat(own_bts, config.cross_slots, axis=2) if config.cross_slots else None,
            ctx.drop,
        )
        return t5.token_log_prob(dec, params, hidden_btd, ctx.side, ctx.scored_bt)

    def source_es(cross: t5.CrossKv | None) -> Array | None:
        return None if cross is None else jnp.ones(cross.key_lbsnh.shape[1:3], bool)

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond
        z_ez, examples = z_egz[:, 0], prompt.token_et.shape[0]
        cross = source(params, z_ez, examples)
        hidden_etd, kv = t5.prefill(
            dec,
            params,
            t5.embed(dec, params, prompt.token_et),
            prompt.length_e,
            max_len,
            memory(params, z_ez, examples, "own"),
            cross,
            source_es(cross),
        )
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        return t5.logits(dec, params, last_ed), DecodeState(_Cache(kv, cross), prompt.length_e)

    def step(params: Any, state: DecodeState, token_e: Array):
        x_ed = t5.embed(dec, params, token_e)
        kv, cross = state.cache
        position_e = state.position_e
        hidden_ed, kv = t5.step(dec, params, x_ed, kv, position_e, cross, source_es(cross))
        next_state = DecodeState(_Cache(kv, cross), position_e + 1)
        return t5.logits(dec, params, hidden_ed), next_state

    example_axes = _Cache._make((KV_AXES, t5.CrossKv._make((1, 1)) if config.cross_slots else None))
    generator = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
        grow=grower(),
    )
    posterior = amortized(_density(config), features)
    return TextVAE(init, axes, prior.prior, generator, posterior, (1, config.latent))


def _tiny(vocab: Vocab, **stack: Any) -> T5VaeConfig:
    """One embedding serves both sides; z reaches both attentions of the decoder."""
    sizes: dict[str, Any] = dict(layers=2, width=16, heads=2, head=6, mlp=24)
    sizes |= dict(vocab=vocab["dec"], buckets=8, max_distance=16, vocab_multiple=8, xent_chunk=10)
    return T5VaeConfig(T5Config(**(sizes | stack)), latent=5, cross_slots=3)


def _stacks(model: Any, vocab: WeightVocab) -> NameTable:
    dec = model.decoder
    return t5_weights.table(vocab, gated=dec.gated, tied=dec.tied, cross=model.cross_slots > 0)


FAMILIES.register("t5_vae")(
    Family(
        T5VaeConfig,
        build,
        limits,
        _tiny,
        # Both stacks share sizes, tokenizer and embedding: one part. New rows have T5's own scale.
        parts=(
            PretrainedPart(
                "decoder", "decoder", ("decoder",), t5_weights.BACKBONE, _stacks, std=1.0
            ),
        ),
        original=originals.t5_vae,
        preset="t5_vae",
    )
)
