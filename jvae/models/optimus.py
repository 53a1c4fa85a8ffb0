"""Optimus: BERT encoder, GPT-2 decoder, one latent vector as attention memory and as embedding
offset.

Source: Li et al. 2020, arXiv 2004.04092, and the released code. Deviations: the encoder never sees
padding (the released likelihood, MI and AU functions drop that mask), the injection flags are part
of the config and so of every checkpoint, and the "deterministic" mode is named for what it is, a
posterior of unit variance.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.fields import Needs, setting
from jvae.latent import amortized
from jvae.latent.gaussian import Gaussian
from jvae.models.common import KV_AXES, expander, grower, last_of_prompt, reorderer, unboxed
from jvae.nn import bert, gpt2, pool
from jvae.nn import config as stack
from jvae.nn.attention import owners, spread
from jvae.nn.cache import Caches
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Initializer, Projection, accum_dtype, apply, fold_key
from jvae.nn.stack import init_stack

POOLS = ("cls", "mean")
LOG_VARIANCES = ("learned", "unit")


@dataclass(frozen=True)
class OptimusConfig:
    """Sizes and choices of one Optimus. A `log_var` of "unit" is the released `fb_mode=2`."""

    encoder: TransformerConfig
    decoder: TransformerConfig
    latent: int = setting(32, **stack.LATENT)
    use_memory: bool = setting(True, help="z as a key and value of every decoder layer.")
    use_embedding: bool = setting(True, help="z added to every input embedding of the decoder.")
    pool: str = setting(
        "cls", choices=POOLS, help="cls: BERT's pooler of [CLS], as published; mean: of the states."
    )
    log_var: str = setting(
        "learned", choices=LOG_VARIANCES, help="unit: a posterior of variance 1."
    )
    log_var_shift: float = setting(
        0.0,
        **stack.LOG_VAR_SHIFT,
        needs=Needs(lambda c: c.log_var == "learned", "log_var is unit"),
    )

    def __post_init__(self) -> None:
        if not (self.use_memory or self.use_embedding):
            raise ValueError(
                "use_memory and use_embedding are both off: z would never reach the decoder"
            )


def limits(config: OptimusConfig) -> dict[str, int]:
    """Most tokens of one example per side; memory takes position 0 of the decoder."""
    memory = int(config.use_memory)
    return {"enc": config.encoder.positions, "dec": config.decoder.positions - memory}


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    x_btd: Array
    drop: Key[Array, ""] | None


class _Cache(NamedTuple):
    kv: Caches
    offset_ed: Array  # W_D z, added to every input embedding; zeros without `use_embedding`


def _init(config: OptimusConfig, key: Key[Array, ""]) -> Any:
    enc, dec = config.encoder, config.decoder
    encoder_key, decoder_key, pooler_key, head_key, memory_key, offset_key = jax.random.split(
        key, 6
    )
    state = jnp.zeros((1, enc.width))
    z = jnp.zeros((1, config.latent))
    params = {
        "encoder": bert.init(enc, encoder_key),
        "posterior": {"head": _head(config).init(head_key, state)["params"]},
        "decoder": gpt2.init(dec, decoder_key),
    }
    if config.pool == "cls":
        params["posterior"]["pooler"] = _pooler(config).init(pooler_key, state)["params"]
    if config.use_memory:
        memory = Projection(
            (dec.heads, dec.head), ("latent",), ("heads", "head"), False, _normal(dec)
        )
        params["decoder"]["memory"] = init_stack(
            lambda k: memory.init(k, z)["params"], memory_key, dec.layers
        )
    if config.use_embedding:
        params["decoder"]["offset"] = _offset(config).init(offset_key, z)["params"]
    return params


def _normal(stack: TransformerConfig) -> Initializer:
    return nn.initializers.normal(stack.init_std)


def _head(config: OptimusConfig) -> Projection:
    return Projection(
        (2, config.latent), ("embed",), (None, "latent"), False, _normal(config.encoder)
    )


def _pooler(config: OptimusConfig) -> Projection:
    return Projection(
        (config.encoder.width,), ("embed",), (None,), kernel_init=_normal(config.encoder)
    )


def _offset(config: OptimusConfig) -> Projection:
    return Projection(
        (config.decoder.width,), ("latent",), ("embed",), False, _normal(config.decoder)
    )


def pooled(
    config: OptimusConfig, params: Any, x_btd: Float[Array, "b t d"], side: Side, slots: int
) -> Float[Array, "e d"]:
    """One feature vector per example from the encoder's last states."""
    if config.pool == "mean":
        return pool.mean(x_btd, side, slots)
    first_ed = pool.first_token(x_btd, side, slots)
    return jnp.tanh(apply(_pooler(config), params["posterior"]["pooler"], first_ed))


def build(config: OptimusConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    enc, dec = config.encoder, config.decoder
    memory_slots = int(config.use_memory)
    init, axes = unboxed(lambda key: _init(config, key))

    def encode(params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: Any) -> Gaussian:
        del cond
        side = batch.enc
        assert side is not None  # `limits` asks for the encoder side
        x_btd, _ = bert.encode(enc, params["encoder"], side, fold_key(drop, 0))
        h_ed = pooled(config, params, x_btd, side, batch.slots)
        h_ed = h_ed.astype(accum_dtype(h_ed.dtype))
        stats_egcz = apply(_head(config), params["posterior"]["head"], h_ed)[:, None]
        mean_egz, log_var_egz = stats_egcz[:, :, 0], stats_egcz[:, :, 1]
        if config.log_var == "unit":
            return Gaussian(mean_egz, jnp.zeros_like(mean_egz))
        return Gaussian(mean_egz, log_var_egz + config.log_var_shift)

    def project(params: Any, z_egz: Array, rows: int) -> tuple[gpt2.LatentKv | None, Array | None]:
        """Memory slots of every layer, key = value, and the embedding offset (E, D)."""
        z_ez = z_egz[:, 0].astype(dec.dtype)
        memory = offset_ed = None
        if config.use_memory:
            kernel_lznh = params["decoder"]["memory"]["kernel"].astype(dec.dtype)
            slot_lenh = jnp.einsum("ez,lznh->lenh", z_ez, kernel_lznh)
            slot_lbmnh = slot_lenh.reshape(dec.layers, rows, -1, dec.heads, dec.head)
            memory = gpt2.LatentKv(slot_lbmnh, slot_lbmnh)
        if config.use_embedding:
            offset_ed = apply(_offset(config), params["decoder"]["offset"], z_ez)
        return memory, offset_ed

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        position_bt = batch.dec.position_bt + memory_slots
        x_btd = gpt2.embed(dec, params["decoder"], batch.read_bt, position_bt)
        return _Context(batch.dec, batch.scored_bt, x_btd, fold_key(drop, 1))

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        rows = ctx.x_btd.shape[0]
        memory, offset_ed = project(params, z_egz, rows)
        x_btd = ctx.x_btd if offset_ed is None else ctx.x_btd + spread(offset_ed, ctx.side)
        owner_m = owners(z_egz.shape[0] // rows)
        hidden_btd, _ = gpt2.teacher_forced(
            dec, params["decoder"], x_btd, ctx.side, memory, owner_m, ctx.drop
        )
        return gpt2.token_log_prob(dec, params["decoder"], hidden_btd, ctx.side, ctx.scored_bt)

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond
        gpt2.check_room(dec, max_len + memory_slots)
        examples, length = prompt.token_et.shape
        memory, offset_ed = project(params, z_egz, examples)
        if offset_ed is None:
            offset_ed = jnp.zeros((examples, dec.width), dec.dtype)
        position_et = jnp.broadcast_to(jnp.arange(length)[None] + memory_slots, (examples, length))
        x_etd = gpt2.embed(dec, params["decoder"], prompt.token_et, position_et)
        hidden_etd, kv = gpt2.prefill(
            dec, params["decoder"], x_etd + offset_ed[:, None], prompt.length_e, max_len, memory
        )
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        state = DecodeState(_Cache(kv, offset_ed), prompt.length_e)
        return gpt2.logits(dec, params["decoder"], last_ed), state

    def step(params: Any, state: DecodeState, token_e: Array):
        cache, position_e = state.cache, state.position_e
        # A memory takes position 0 of the table.
        x_ed = gpt2.embed(dec, params["decoder"], token_e, position_e + memory_slots)
        x_ed = x_ed + cache.offset_ed
        hidden_ed, kv = gpt2.step(dec, params["decoder"], x_ed, cache.kv, position_e)
        next_state = DecodeState(_Cache(kv, cache.offset_ed), position_e + 1)
        return gpt2.logits(dec, params["decoder"], hidden_ed), next_state

    example_axes = _Cache._make((KV_AXES, 0))
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
        grow=grower(lambda places: gpt2.check_room(dec, places)),
    )
    posterior = amortized.posterior(encode)
    return TextVAE(init, axes, generator, posterior, posterior, (1, config.latent))
