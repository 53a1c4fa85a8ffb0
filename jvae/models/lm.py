"""A GPT-2 language model as a null-latent member of the contract: the baseline of every table, NLL
exact for every K.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.latent import null
from jvae.models.common import KV_AXES, expander, grower, last_of_prompt, reorderer, unboxed
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.tiny import transformer as tiny_transformer
from jvae.nn import gpt2
from jvae.nn.cache import Caches
from jvae.nn.config import TransformerConfig
from jvae.pretrained.parts import GPT2_DECODER


@dataclass(frozen=True)
class LmConfig:
    """One decoder stack."""

    decoder: TransformerConfig


def limits(config: LmConfig) -> dict[str, int]:
    """Most tokens of one example; there is no encoder side."""
    return {"dec": config.decoder.positions}


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    hidden_btd: Array


class _Cache(NamedTuple):
    kv: Caches


def build(config: LmConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    c = config.decoder
    init, axes = unboxed(lambda key: {"decoder": gpt2.init(c, key)})

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        x_btd = gpt2.embed(c, params["decoder"], batch.read_bt, batch.dec.position_bt)
        hidden_btd, _ = gpt2.teacher_forced(c, params["decoder"], x_btd, batch.dec, drop=drop)
        return _Context(batch.dec, batch.scored_bt, hidden_btd)

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        del z_egz
        return gpt2.token_log_prob(c, params["decoder"], ctx.hidden_btd, ctx.side, ctx.scored_bt)

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del z_egz, cond
        gpt2.check_room(c, max_len)
        position = jnp.broadcast_to(
            jnp.arange(prompt.token_et.shape[1])[None], prompt.token_et.shape
        )
        x_etd = gpt2.embed(c, params["decoder"], prompt.token_et, position)
        hidden_etd, kv = gpt2.prefill(c, params["decoder"], x_etd, prompt.length_e, max_len)
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        return gpt2.logits(c, params["decoder"], last_ed), DecodeState(_Cache(kv), prompt.length_e)

    def step(params: Any, state: DecodeState, token_e: Array):
        x_ed = gpt2.embed(c, params["decoder"], token_e, state.position_e)
        hidden_ed, kv = gpt2.step(c, params["decoder"], x_ed, state.cache.kv, state.position_e)
        next_state = DecodeState(_Cache(kv), state.position_e + 1)
        return gpt2.logits(c, params["decoder"], hidden_ed), next_state

    example_axes = _Cache(KV_AXES)
    generator = Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
        grow=grower(lambda places: gpt2.check_room(c, places)),
    )
    return TextVAE(init, axes, null.PRIOR, generator, null.POSTERIOR, null.LATENT_SHAPE)


def _tiny(vocab: Vocab, **stack: Any) -> LmConfig:
    return LmConfig(tiny_transformer(vocab["dec"], **stack))


FAMILIES.register("lm")(Family(LmConfig, build, limits, _tiny, parts=(GPT2_DECODER,), preset="lm"))
