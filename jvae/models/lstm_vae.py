"""LSTM generator with its amortised VAE and its language model.

The generator: z enters every step beside the token and gives the first hidden state, h_0 = W z + b;
embedding and output layer are untied, dropout acts on both sides of the LSTM. Source: Kim et al.
2018, arXiv 1802.02550, and the released code; the short-run model of `jvae.models.sri` uses the
same one. The encoder reads the sentence with an LSTM, its last state gives mean and log-variance.
Deviation: one layer only, as every published table has it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE
from jvae.fields import setting
from jvae.latent import null
from jvae.latent.choice import Choice
from jvae.latent.densities import GAUSSIAN, Affine, Density, amortized, build_density
from jvae.latent.priors import STANDARD_NORMAL, build_prior
from jvae.models.common import expander, reorderer, unboxed, with_prior
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.tiny import lstm as tiny_lstm
from jvae.nn import config as stack
from jvae.nn import lstm
from jvae.nn.attention import own_slot
from jvae.nn.layers import accum_dtype, dropout, fold_key, split_key
from jvae.nn.lstm import LstmConfig, LstmState

UNBOUNDED = 2**31 - 1  # a recurrent network reads sentences of any length


@dataclass(frozen=True)
class LstmVaeConfig:
    """Sizes of encoder, decoder and latent. Published encoders have a `dropout` of 0."""

    encoder: LstmConfig
    decoder: LstmConfig
    latent: int = setting(32, **stack.LATENT)
    log_var_shift: float = setting(0.0, **stack.LOG_VAR_SHIFT)
    prior: Choice = STANDARD_NORMAL
    posterior: Choice = GAUSSIAN


@dataclass(frozen=True)
class LstmLmConfig:
    """One decoder without a latent."""

    decoder: LstmConfig


class _Context(NamedTuple):
    side: Side
    scored_bt: Array
    gate_bt4f: Array  # what the tokens give to the gates
    place_bts: Array  # S columns: a token's own slot; S more: that slot at its first token
    drop: Key[Array, ""] | None


class _Cache(NamedTuple):
    state: LstmState
    gate_e4f: Array  # what z gives to the gates of every step


def init_decoder(config: LstmConfig, latent: int, key: Key[Array, ""]) -> Any:
    """Boxed parameters of the generator; `latent` 0 leaves out what reads z."""
    keys = split_key(key, 6)
    params = {
        "embed": lstm.init_table(config, keys[0]),
        "cell": lstm.init_cell(config, keys[1]),
        "output": lstm.init_output(config, keys[2]),
    }
    if latent:
        hidden = config.hidden
        shapes = ((latent, 4, hidden), ("latent", None, None)), ((latent, hidden), ("latent", None))
        params["latent"] = {"kernel": lstm.uniform(config, keys[3], *shapes[0])}
        params["first"] = {
            "kernel": lstm.uniform(config, keys[4], *shapes[1]),
            "bias": lstm.uniform(config, keys[5], (hidden,), (None,)),
        }
    return params


def generator(config: LstmConfig, latent: int) -> Generator:
    """The generator over `params["decoder"]`; a language model when `latent` is 0."""

    def embed_gates(params: Any, token: Array, drop: Key[Array, ""] | None = None) -> Array:
        x = dropout(drop, config.dropout, lstm.embed(config, params["embed"], token))
        return lstm.gates(params["cell"], x)

    def latent_gates(params: Any, z_egz: Array) -> tuple[Array, Array]:
        """What z gives to the gates of every token, and by way of h_0 to those of the first."""
        z_ez = z_egz.reshape(z_egz.shape[0], -1).astype(config.dtype)
        kernel_z4f = params["latent"]["kernel"].astype(config.dtype)
        kernel_zf = params["first"]["kernel"].astype(config.dtype)
        bias_1f = params["first"]["bias"].astype(config.dtype)[None]
        every_e4f = jnp.tensordot(z_ez, kernel_z4f, axes=1)
        return every_e4f, lstm.state_gates(params["cell"], z_ez @ kernel_zf + bias_1f)

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        gate_bt4f = embed_gates(params["decoder"], batch.read_bt, fold_key(drop, 1))
        own_bts = own_slot(batch.dec, batch.slots)
        first_bts = own_bts & (batch.dec.position_bt == 0)[:, :, None]
        place_bts = jnp.concatenate([own_bts, first_bts], axis=2).astype(config.dtype)
        return _Context(batch.dec, batch.scored_bt, gate_bt4f, place_bts, fold_key(drop, 2))

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        gate_bt4f = ctx.gate_bt4f
        if latent:
            both = [
                a.reshape(ctx.place_bts.shape[0], -1, *a.shape[1:])
                for a in latent_gates(params["decoder"], z_egz)
            ]
            given_bs4f = jnp.concatenate(both, axis=1)
            gate_bt4f = gate_bt4f + jnp.einsum("bts,bsgf->btgf", ctx.place_bts, given_bs4f)
        hidden_btf = lstm.run(params["decoder"]["cell"], gate_bt4f, ctx.side.position_bt == 0)
        hidden_btf = dropout(ctx.drop, config.dropout, hidden_btf)
        out = params["decoder"]["output"]
        return lstm.token_log_prob(config, out, hidden_btf, ctx.side, ctx.scored_bt)

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond, max_len  # the state has one size for all lengths
        gate_et4f = embed_gates(params["decoder"], prompt.token_et)
        every_e4f = jnp.zeros_like(gate_et4f[:, 0])
        if latent:
            every_e4f, first_e4f = latent_gates(params["decoder"], z_egz)
            gate_et4f = (gate_et4f + every_e4f[:, None]).at[:, 0].add(first_e4f)
        state = lstm.prefill(params["decoder"]["cell"], gate_et4f, prompt.length_e)
        scores_ev = lstm.logits(config, params["decoder"]["output"], state.hidden_ef)
        return scores_ev, DecodeState(_Cache(state, every_e4f), prompt.length_e)

    def step(params: Any, state: DecodeState, token_e: Array):
        gate_e4f = embed_gates(params["decoder"], token_e) + state.cache.gate_e4f
        new = lstm.cell(params["decoder"]["cell"], gate_e4f, state.cache.state)
        next_state = DecodeState(_Cache(new, state.cache.gate_e4f), state.position_e + 1)
        return lstm.logits(config, params["decoder"]["output"], new.hidden_ef), next_state

    axis: Any = 0  # of the examples
    example_axes = _Cache(LstmState(axis, axis), axis)
    return Generator(
        condition=lambda params, batch, drop=None: None,
        prepare=prepare,
        log_lik=log_lik,
        aux=lambda params, ctx, draws: {},
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
    )


def _density(config: LstmVaeConfig) -> Density:
    stack = config.encoder

    def head(outputs: tuple[int, ...], axes: tuple[str | None, ...]) -> Affine:
        def init(key: Key[Array, "..."]) -> Any:
            # A pair of keys, or one that a density with several heads has split off.
            kernel_key, bias_key = key if key.ndim else jax.random.split(key)
            shape = (stack.hidden, *outputs)
            return {
                "kernel": lstm.uniform(stack, kernel_key, shape, ("embed", *axes)),
                "bias": lstm.uniform(stack, bias_key, outputs, axes),
            }

        def affine(params: Any, h_ed: Float[Array, "e d"]) -> Array:
            return jnp.tensordot(h_ed, params["kernel"], axes=1) + params["bias"][None]

        return Affine(init, affine)

    choice = config.posterior.with_defaults("gaussian", log_var_shift=config.log_var_shift)
    return build_density(choice, head, config.latent)


def _init_encoder(config: LstmVaeConfig, key: Key[Array, ""]) -> Any:
    keys = split_key(key, 4)
    return {
        "encoder": {
            "embed": lstm.init_table(config.encoder, keys[0]),
            "cell": lstm.init_cell(config.encoder, keys[1]),
        },
        "posterior": _density(config).init(jnp.stack(list(keys[2:]))),
    }


def _encoder(config: LstmVaeConfig) -> Any:
    c = config.encoder

    def features(
        params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: Any
    ) -> Float[Array, "e f"]:
        del cond
        embed_drop, last_drop = split_key(fold_key(drop, 0), 2)
        side = batch.enc
        assert side is not None  # `limits` names the encoder side
        x_btd = lstm.embed(c, params["encoder"]["embed"], side.token_bt)
        gate_bt4f = lstm.gates(params["encoder"]["cell"], dropout(embed_drop, c.dropout, x_btd))
        hidden_btf = lstm.run(params["encoder"]["cell"], gate_bt4f, side.position_bt == 0)
        last_ef: Float[Array, "e f"] = lstm.last_state(hidden_btf, side, batch.slots)
        return dropout(last_drop, c.dropout, last_ef).astype(accum_dtype(last_ef.dtype))

    return features


def limits(config: LstmVaeConfig) -> dict[str, int]:
    """Most tokens of one example per side."""
    del config
    return {"enc": UNBOUNDED, "dec": UNBOUNDED}


def build(config: LstmVaeConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""

    prior = build_prior(config.prior, (1, config.latent))

    def init_boxed(key: Key[Array, ""]) -> Any:
        encoder_key, decoder_key = split_key(key, 2)
        decoder = {"decoder": init_decoder(config.decoder, config.latent, decoder_key)}
        return with_prior(decoder | _init_encoder(config, encoder_key), prior, key)

    init, axes = unboxed(init_boxed)
    posterior = amortized(_density(config), _encoder(config))
    gen = generator(config.decoder, config.latent)
    return TextVAE(init, axes, prior.prior, gen, posterior, (1, config.latent))


def lm_limits(config: LstmLmConfig) -> dict[str, int]:
    """Most tokens of one example; there is no encoder side."""
    del config
    return {"dec": UNBOUNDED}


def build_lm(config: LstmLmConfig) -> TextVAE:
    """The language model of a config."""
    init, axes = unboxed(lambda key: {"decoder": init_decoder(config.decoder, 0, key)})
    gen = generator(config.decoder, 0)
    return TextVAE(init, axes, null.PRIOR, gen, null.POSTERIOR, null.LATENT_SHAPE)


def _tiny(vocab: Vocab, **stack: Any) -> LstmVaeConfig:
    sides = (tiny_lstm(vocab[side], **stack) for side in ("enc", "dec"))
    return LstmVaeConfig(*sides, latent=5)


def _tiny_lm(vocab: Vocab, **stack: Any) -> LstmLmConfig:
    return LstmLmConfig(tiny_lstm(vocab["dec"], **stack))


FAMILIES.register("lstm_vae")(Family(LstmVaeConfig, build, limits, _tiny, preset="lstm_vae"))
FAMILIES.register("lstm_lm")(Family(LstmLmConfig, build_lm, lm_limits, _tiny_lm, preset="lm:lstm"))
