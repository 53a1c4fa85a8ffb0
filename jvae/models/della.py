"""DELLA: one GPT-2 as encoder and decoder, a latent for every layer, multiplied into the attention
values of that layer.

Source: Hu et al. 2022, arXiv 2207.06130, and the released code. Where the two differ the config
names both; deviations of the defaults are named there. The released code averages KL and densities
over layers: here they are sums, as the bound has it (`objective.kl_reduce`). It also predicts the
first new token of a short prompt from padding; here each prompt ends at its own last token.

Conditional (source to target): `dec` holds source then target, of which the target is scored;
`cond` holds the source; `enc` what the posterior reads, both texts or the target alone, see
`cvae_posterior`. A prompt for decoding is the source.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jvae.api import Batch, DecodeState, Generator, Prompt, Side, TextVAE, per_example
from jvae.fields import Needs, setting
from jvae.latent import layerwise
from jvae.latent.layerwise import Chain, ChainPost
from jvae.models.common import KV_AXES, expander, grower, last_of_prompt, reorderer, unboxed
from jvae.nn import fusion, gpt2, layer_vectors
from jvae.nn.cache import Caches
from jvae.nn.config import TransformerConfig
from jvae.nn.layers import Projection, accum_dtype, apply, fold_key, split_key, uniform_fan_in
from jvae.nn.stack import init_stack

POOLS = ("attn_masked", "attn_unmasked", "first_token")
CVAE_POSTERIORS = ("concat_text", "xc")


@dataclass(frozen=True)
class DellaConfig:
    """Sizes and choices of one DELLA.

    pool: "attn_masked" weighs a sentence's own tokens, "attn_unmasked" those of the whole row,
    padding too (released code; one sentence per row), "first_token" is the paper's. ltp:
    "sum_then_product" as published, or "product_then_sum", whose rank means something.
    """

    decoder: TransformerConfig
    latent: int = setting(32, low=1, high=2**20, help="Width of each layer's z.")
    rank: int = setting(4, low=1, high=2**16, help="Of the tensor product.")
    conditional: bool = setting(False, help="Source to target; needs data.source.")
    begin_layer: int = setting(0, low=0, high=4_095, help="First layer that has a latent.")
    end_layer: int = setting(-1, low=0, high=4_095, also=(-1,), help="Last one; -1: the top.")
    pool: str = setting("attn_masked", choices=POOLS, help="Of the encoder's states.")
    ltp: str = setting("sum_then_product", choices=fusion.ORDERS, help="Order of the product.")
    tie_lm_head: bool = setting(
        False, help="The output head is the token embedding; released: one from scratch."
    )
    use_bow: bool = setting(False, help="Auxiliary term: the words from the top latent.")
    learn_prior1: bool = setting(True, help="False: the paper's standard normal first prior.")
    cvae_posterior: str = setting(
        "concat_text",
        choices=CVAE_POSTERIORS,
        help="The source as part of what is encoded (released) or beside it (xc, paper).",
        needs=Needs(lambda c: c.conditional, "conditional is false"),
    )
    clip: float = setting(
        5.0, above=0.0, high=100.0, help="Bound on means and log-variances, as released."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.begin_layer <= self.last_layer < self.decoder.layers:
            raise ValueError(
                f"begin_layer {self.begin_layer} and end_layer {self.end_layer} do not name layers "
                f"0 to {self.decoder.layers - 1}, the first before the last"
            )
        if self.conditional and not self.learn_prior1:
            raise ValueError(
                "learn_prior1 is off: the first latent of a conditional model would not know the "
                "source; set it to true"
            )

    @property
    def last_layer(self) -> int:
        """The last layer that has a latent."""
        return self.decoder.layers - 1 if self.end_layer == -1 else self.end_layer

    @property
    def groups(self) -> int:
        """Layers that have a latent."""
        return self.last_layer - self.begin_layer + 1


def limits(config: DellaConfig) -> dict[str, int]:
    """Most tokens of one example per side; source and target share the `dec` side."""
    sides = ("enc", "dec", "cond") if config.conditional else ("enc", "dec")
    return dict.fromkeys(sides, config.decoder.positions)


def joined(config: DellaConfig) -> tuple[str, ...]:
    """Sides whose examples begin with the source."""
    if not config.conditional:
        return ()
    return ("dec", "enc") if config.cvae_posterior == "concat_text" else ("dec",)


class _Context(NamedTuple):
    batch: Batch
    x_btd: Array
    drop: Key[Array, ""] | None


class _Source(NamedTuple):
    """What the source text adds to the heads of each group."""

    prior_egcz: Array
    posterior_egcz: Array | None


class _Cache(NamedTuple):
    kv: Caches
    factor_lernh: Array  # what fusion needs of z


def _init(config: DellaConfig, key: Key[Array, ""]) -> Any:
    dec, z = config.decoder, config.latent
    keys = iter(split_key(key, 11))
    state, latent = jnp.zeros((1, dec.width)), jnp.zeros((1, z))

    def stacked(layer: Any, x: Array) -> Any:
        return init_stack(lambda k: layer.init(k, x)["params"], next(keys), config.groups)

    def text() -> Any:
        return stacked(Projection((2, z), ("embed",), (None, "latent"), use_bias=False), state)

    def chain(features: tuple[int, ...]) -> Any:
        out = (*[None] * (len(features) - 1), "latent")
        return stacked(Projection(features, (None,), out), latent)

    params = {
        "decoder": gpt2.init(dec, next(keys), config.tie_lm_head),
        "prior": {
            "chain": {"state": chain((z,)), "latent": chain((z,))},
            "head": {"chain": chain((2, z))},
        },
        "posterior": {"head": {"chain": chain((2, z)), "text": text()}},
    }
    params["decoder"]["fusion"] = fusion.init(dec, config.groups, z, config.rank, next(keys))
    if config.pool != "first_token":
        query = Projection((), ("embed",), (), use_bias=False)
        params["posterior"]["pool"] = stacked(query, state)
    if config.conditional:
        params["prior"]["head"]["source"] = text()
        if config.cvae_posterior == "xc":
            params["posterior"]["head"]["source"] = text()
    if config.use_bow:
        params["decoder"]["bow"] = _bow(config).init(next(keys), latent)["params"]
    return params


def _bow(config: DellaConfig) -> Projection:
    start = uniform_fan_in(config.latent)
    return Projection((config.decoder.width,), ("latent",), ("embed",), kernel_init=start)


def chain(config: DellaConfig) -> Chain:
    """The chain of latents, from the first layer that has one to the last."""

    def linear(p: Any, x_ez: Array, out: str) -> Array:
        y = jnp.einsum(f"ez,z{out}->e{out}", x_ez, p["kernel"].astype(x_ez.dtype))
        return y + p["bias"].astype(x_ez.dtype)[None]

    return Chain(
        groups=config.groups,
        width=config.latent,
        params_of=lambda params: {
            "chain": params["prior"]["chain"],
            "prior": params["prior"]["head"]["chain"],
            "posterior": params["posterior"]["head"]["chain"],
        },
        summary=lambda p, s_ez, z_ez: jnp.tanh(
            linear(p["chain"]["state"], s_ez, "y") + linear(p["chain"]["latent"], z_ez, "y")
        ),
        prior=lambda p, s_ez: linear(p["prior"], s_ez, "cy"),
        posterior=lambda p, s_ez: linear(p["posterior"], s_ez, "cy"),
        clip=config.clip,
        learned_first=config.learn_prior1,
    )


def pooled(
    config: DellaConfig, params: Any, side: Side, slots: int, drop: Key[Array, ""] | None = None
) -> Float[Array, "e g d"]:
    """One vector per example and layer with a latent, from one bidirectional pass.

    Raises: ValueError for pool "attn_unmasked" with more than one example per row.
    """
    query_gd = None
    if config.pool != "first_token":
        query_gd = params["posterior"]["pool"]["kernel"]
    x_ged = layer_vectors.layer_vectors(
        config.decoder,
        params["decoder"],
        side,
        slots,
        query_gd,
        masked=config.pool != "attn_unmasked",
        first=config.begin_layer,
        groups=config.groups,
        drop=drop,
    )
    return jnp.moveaxis(x_ged, 0, 1)


def _addend(p: Any, x_egd: Float[Array, "e g d"]) -> Float[Array, "e g 2 z"]:
    x_egd = x_egd.astype(accum_dtype(x_egd.dtype))
    return jnp.einsum("egd,gdcz->egcz", x_egd, p["kernel"].astype(x_egd.dtype))


def build(config: DellaConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    dec = config.decoder
    links = chain(config)
    fused = fusion.Fusion(dec, config.begin_layer, config.groups, config.ltp)
    init, axes = unboxed(lambda key: _init(config, key))

    def condition(params: Any, batch: Batch, drop: Key[Array, ""] | None = None) -> _Source | None:
        if not config.conditional:
            return None
        if batch.cond is None:
            raise ValueError("a conditional model needs the `cond` side of the batch, the source")
        c_egd = pooled(config, params, batch.cond, batch.slots, fold_key(drop, 2))
        prior_egcz = _addend(params["prior"]["head"]["source"], c_egd)
        if config.cvae_posterior != "xc":
            return _Source(prior_egcz, None)
        return _Source(prior_egcz, _addend(params["posterior"]["head"]["source"], c_egd))

    def encode(
        params: Any, batch: Batch, drop: Key[Array, ""] | None, cond: _Source | None
    ) -> ChainPost:
        assert batch.enc is not None  # `limits` asks for this side
        x_egd = pooled(config, params, batch.enc, batch.slots, fold_key(drop, 0))
        text_egcz = _addend(params["posterior"]["head"]["text"], x_egd)
        if cond is None:
            return ChainPost(text_egcz, None)
        if cond.posterior_egcz is not None:
            text_egcz = text_egcz + cond.posterior_egcz
        return ChainPost(text_egcz, cond.prior_egcz)

    def prepare(params: Any, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond  # the source reaches the decoder as the beginning of `dec`
        x_btd = gpt2.embed(dec, params["decoder"], batch.read_bt, batch.dec.position_bt)
        return _Context(batch, x_btd, fold_key(drop, 1))

    def fuse_inputs(params: Any, factor_lernh: Array) -> fusion.FuseInputs:
        return fusion.inputs(fused, params["decoder"]["fusion"], factor_lernh)

    def log_lik(params: Any, ctx: _Context, z_egz: Array) -> Array:
        side = ctx.batch.dec
        factor_lernh = fusion.latent_factor(fused, params["decoder"]["fusion"], z_egz)
        hidden_btd, _ = gpt2.teacher_forced(
            dec,
            params["decoder"],
            ctx.x_btd,
            side,
            drop=ctx.drop,
            fuse=partial(fusion.fuse, side=side),
            fuse_l=fuse_inputs(params, factor_lernh),
        )
        return gpt2.token_log_prob(dec, params["decoder"], hidden_btd, side, ctx.batch.scored_bt)

    def aux(params: Any, ctx: _Context, z_egz: Array) -> dict[str, Array]:
        if not config.use_bow:
            return {}
        bow_ed = apply(_bow(config), params["decoder"]["bow"], z_egz[:, -1])
        bow_ed = bow_ed.astype(dec.dtype)
        log_p_ev = jax.nn.log_softmax(gpt2.logits(dec, params["decoder"], bow_ed), axis=-1)
        side = ctx.batch.dec
        rows = side.token_bt.shape[0]
        log_p_bsv = log_p_ev.reshape(rows, -1, log_p_ev.shape[-1])
        slot_bt = jnp.maximum(side.segment_bt - 1, 0)
        nats_bt = log_p_bsv[jnp.arange(rows)[:, None], slot_bt, side.token_bt]
        return {"bow": -per_example(jnp.where(ctx.batch.scored_bt, nats_bt, 0.0), ctx.batch)}

    def start(params: Any, z_egz: Array, prompt: Prompt, max_len: int, cond=None):
        del cond  # z was drawn with it, and the prompt holds the source
        gpt2.check_room(dec, max_len)
        length = prompt.token_et.shape
        position_et = jnp.broadcast_to(jnp.arange(length[1])[None], length)
        x_etd = gpt2.embed(dec, params["decoder"], prompt.token_et, position_et)
        factor_lernh = fusion.latent_factor(fused, params["decoder"]["fusion"], z_egz)
        fuse_l = fuse_inputs(params, factor_lernh)
        hidden_etd, kv = gpt2.prefill(
            *(dec, params["decoder"], x_etd, prompt.length_e, max_len),
            fuse=fusion.fuse,
            fuse_l=fuse_l,
        )
        last_ed = last_of_prompt(hidden_etd, prompt.length_e)
        state = DecodeState(_Cache(kv, factor_lernh), prompt.length_e)
        return gpt2.logits(dec, params["decoder"], last_ed), state

    def step(params: Any, state: DecodeState, token_e: Array):
        cache, position_e = state.cache, state.position_e
        x_ed = gpt2.embed(dec, params["decoder"], token_e, position_e)
        fuse_l = fuse_inputs(params, cache.factor_lernh)
        hidden_ed, kv = gpt2.step(
            dec, params["decoder"], x_ed, cache.kv, position_e, fuse=fusion.fuse, fuse_l=fuse_l
        )
        next_state = DecodeState(_Cache(kv, cache.factor_lernh), position_e + 1)
        return gpt2.logits(dec, params["decoder"], hidden_ed), next_state

    def prior_addend(cond: _Source | None) -> Array | None:
        return None if cond is None else cond.prior_egcz

    example_axes = _Cache._make((KV_AXES, 1))
    generator = Generator(
        condition=condition,
        sample_prior=lambda params, key_e, cond=None: layerwise.sample_prior(
            links, params, key_e, prior_addend(cond)
        ),
        log_prior=lambda params, z_egz, cond=None: layerwise.log_prior(
            links, params, z_egz, prior_addend(cond)
        ),
        prepare=prepare,
        log_lik=log_lik,
        aux=aux,
        start=start,
        step=step,
        expand=expander(example_axes),
        reorder=reorderer(example_axes),
        grow=grower(lambda places: gpt2.check_room(dec, places)),
    )
    posterior = layerwise.posterior(links, encode)
    return TextVAE(init, axes, generator, posterior, posterior, (config.groups, config.latent))
