"""AdaVAE: one GPT-2 as un-masked encoder (its first layers) and causal decoder, made a VAE by
adapters, a pooling head and ways for z into the decoder. The stack is meant to stay frozen: what
trains, and from when, says `optim.trainable`.

Source: Tu et al. 2022, arXiv 2205.05862, and the released code. Two mistakes of the released code
are options, off by default: `placement_form="released"` and `pool_scale="sqrt_batch"`. Parameters
of the stack exist once, under `decoder`; `encoder` holds what the encoder alone has.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.latent.densities import Density, amortized, build_density
from jvae.latent.priors import build_prior
from jvae.models.adavae_config import AdaVaeConfig
from jvae.models.adavae_encoder import adapter_of, block_of, encoded, pooler_of, prefix_of
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
from jvae.models.tiny import transformer as tiny_transformer
from jvae.nn import condition, gpt2
from jvae.nn.attention import for_everyone, owners, spread
from jvae.nn.cache import Caches
from jvae.nn.layers import Projection, apply, fold_key, split_key
from jvae.nn.prefix import for_rows
from jvae.nn.stack import init_stack
from jvae.pretrained import originals
from jvae.pretrained.parts import GPT2_DECODER


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
    kv: Caches
    offset_ed: Array | None
    output_ez: Array | None
    adapter_led: Array | None


def _density(config: AdaVaeConfig) -> Density:
    start = nn.initializers.normal(config.decoder.init_std)
    head = projection_head(
        config.decoder.width,
        lambda out, axes: Projection(out, ("embed",), axes, kernel_init=start),
    )
    choice = config.posterior.with_defaults("gaussian", log_var_shift=config.log_var_shift)
    return build_density(choice, head, config.latent)


def _init(config: AdaVaeConfig, key: Key[Array, ""]) -> Any:
    dec, stack_key = config.decoder, jax.random.fold_in(key, 0)
    ways_key, head_key, pool_key, *side_keys = jax.random.split(key, 7)
    width = dec.width * (2 if config.pool == "mean_max_linear" else 1)
    x = jnp.zeros((1, dec.width))
    params: dict[str, Any] = {
        "encoder": {},
        "posterior": _density(config).init(head_key)
        | {"pool": pooler_of(config).init(pool_key, jnp.zeros((1, width)))["params"]},
        "decoder": gpt2.init(dec, stack_key)
        | condition.init(dec, config.ways, config.latent, ways_key),
    }
    for side, layers, adapted, keys in (
        ("encoder", config.encoder_layers, config.adapt_encoder, side_keys[:2]),
        ("decoder", dec.layers, config.adapt_decoder, side_keys[2:]),
    ):
        if adapted:
            params[side]["adapter"] = init_stack(
                lambda k: adapter_of(config).init(k, x)["params"], keys[0], layers
            )
        if config.prefix:
            params[side]["prefix"] = prefix_of(config).init(keys[1])["params"]
    return {part: tree for part, tree in params.items() if tree}


def _slots(
    psa: gpt2.LatentKv | None, prefix: gpt2.LatentKv | None, memory: gpt2.LatentKv | None
) -> gpt2.LatentKv | None:
    """All slots of a row, side by side."""
    parts = [part for part in (psa, prefix, memory) if part is not None]
    if not parts:
        return None
    return gpt2.LatentKv(*(jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True)))


def _owners(config: AdaVaeConfig, slots: int) -> np.ndarray:
    """Slots of the own latent, and every prefix slot."""
    own_s, shared_m = owners(slots), for_everyone(config.prefix)
    parts = [own_s] * int(config.use_psa) + [shared_m] + [own_s] * int(config.use_memory)
    return np.concatenate(parts)


def build(config: AdaVaeConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    dec, ways = config.decoder, config.ways
    prior = build_prior(config.prior, (1, config.latent))
    init, axes = unboxed(lambda key: with_prior(_init(config, key), prior, key))

    def features(
        params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: Any
    ) -> Float[Array, "e d"]:
        del cond
        return encoded(config, params, batch, fold_key(drop, 0))[0]

    def prefix_kv(params: Any, drop: Key[Array, ""] | None = None) -> Any:
        if not config.prefix:
            return None
        return apply(prefix_of(config), params["decoder"]["prefix"], drop)

    def prefix_slots(prefix: Any, rows: int) -> gpt2.LatentKv | None:
        return None if prefix is None else for_rows(prefix[0], prefix[1], rows, dec.layers)

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        drop_prefix, drop_layers = split_key(fold_key(drop, 1), 2)
        x_btd = gpt2.embed(dec, params["decoder"], batch.read_bt, batch.dec.position_bt)
        prefix = prefix_kv(params, drop_prefix)
        return _Context(batch.dec, batch.scored_bt, x_btd, prefix, drop_layers)

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        own, side = params["decoder"], ctx.side
        rows = ctx.x_btd.shape[0]
        added = condition.added(dec, ways, own, z_egz[:, 0], rows)
        x_btd = ctx.x_btd
        if added.offset_ed is not None:
            x_btd = x_btd + spread(added.offset_ed, side)
        block, block_l = block_of(
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
            _owners(config, z_egz.shape[0] // rows),
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
        added = condition.added(dec, ways, own, z_egz[:, 0], examples)
        x_etd = gpt2.embed(dec, own, prompt.token_et, _positions(prompt.token_et))
        if added.offset_ed is not None:
            x_etd = x_etd + added.offset_ed[:, None]
        block, block_l = decoding_block(params, added.adapter_led)
        slots = _slots(added.psa, prefix_slots(prefix_kv(params), examples), added.memory)
        hidden_etd, kv = gpt2.prefill(
            dec, own, x_etd, prompt.length_e, max_len, slots, block=block, block_l=block_l
        )
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        cache = _Cache(kv, added.offset_ed, added.output_ez, added.adapter_led)
        return scores(params, last_ed, added.output_ez), DecodeState(cache, prompt.length_e)

    def step(params: Any, state: DecodeState, token_e: Array):
        cache, position_e = state.cache, state.position_e
        x_ed = gpt2.embed(dec, params["decoder"], token_e, position_e)
        x_ed = x_ed if cache.offset_ed is None else x_ed + cache.offset_ed
        block, block_l = decoding_block(params, cache.adapter_led)
        hidden_ed, kv = gpt2.step(
            dec, params["decoder"], x_ed, cache.kv, position_e, block=block, block_l=block_l
        )
        next_state = DecodeState(cache._replace(kv=kv), position_e + 1)
        return scores(params, hidden_ed, cache.output_ez), next_state

    def decoding_block(params: Any, added_led: Array | None):
        own = params["decoder"]
        each = lambda value_ed: value_ed[:, None]  # noqa: E731
        return block_of(config, own, decoder=True, added_led=added_led, to_tokens=each)

    example_axes = _Cache._make(
        (
            KV_AXES,
            0 if config.use_embedding else None,
            0 if config.use_output else None,
            1 if config.use_adapters else None,
        )
    )
    generator = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
        grow=grower(lambda places: gpt2.check_room(dec, places - config.slots)),
    )
    posterior = amortized(_density(config), features)
    return TextVAE(init, axes, prior.prior, generator, posterior, (1, config.latent))


def _positions(token_et: Int[Array, "e t"]) -> Int[Array, "e t"]:
    return jnp.broadcast_to(jnp.arange(token_et.shape[1])[None], token_et.shape)


def _tiny(vocab: Vocab, **stack: Any) -> AdaVaeConfig:
    sizes: dict[str, Any] = dict(encoder_layers=1, latent=5, adapter=3, prefix_middle=3)
    return AdaVaeConfig(tiny_transformer(vocab["dec"], **stack), **sizes)


FAMILIES.register("adavae")(
    Family(
        AdaVaeConfig,
        build,
        limits,
        _tiny,
        parts=(GPT2_DECODER,),
        original=originals.adavae,
        preset="adavae",
    )
)
