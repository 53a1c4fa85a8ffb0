"""DELLA: one stack as encoder and decoder, with a latent for every layer that is multiplied into
the attention values of that layer.

Source: Hu et al. 2022, arXiv 2207.06130, and the released code, on GPT-2. Where the two differ,
the config has an option for both and documents deviations of the defaults. The released code
averages KL and densities over layers; here they are summed, as in the bound
(`objective.kl_reduce`). It also predicts the first new token of a short prompt from padding; here
each prompt ends at its own last token.

Conditional models (source to target): `dec` is the source followed by the target, and only the
target is scored. `cond` is the source. `enc`, the posterior's input, is both texts or the target
alone, see `cvae_posterior`. The prompt for decoding is the source. With `source="cross"` the
decoder instead attends to the encoder's states of the source, and `dec` is the target alone; this
is the paper's model on BART, whose code was not released.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Draws, Params, RowStates, Side, TextVAE, per_example
from jvae.backbones import small
from jvae.errors import ConfigError
from jvae.fields import Needs, setting
from jvae.injections import fusion
from jvae.injections.contract import Injection, Once, Reach
from jvae.injections.layer_offset import layer_offset
from jvae.latent import layerwise
from jvae.latent.layerwise import Chain, ChainPost
from jvae.models.common import unboxed
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.generator import Context, generator, room
from jvae.models.layer_vectors import layer_vectors
from jvae.nn.backbone import Stack, StackConfig, stack_of
from jvae.nn.layers import Projection, accum_dtype, apply, fold_key, split_key, uniform_fan_in
from jvae.nn.stack import init_stack
from jvae.pretrained import originals
from jvae.pretrained.parts import PretrainedPart, both_part, stack_part

POOLS = ("attn_masked", "attn_unmasked", "first_token")
CVAE_POSTERIORS = ("concat_text", "xc")
FUSIONS = ("product", "offset")
LAYER_LATENTS = ("chain", "independent", "shared")
SOURCES = ("prefix", "cross")


@dataclass(frozen=True)
class DellaConfig:
    """Sizes and choices of one DELLA.

    The stack of `decoder` also encodes, unless a separate `encoder` is set.

    pool: "attn_masked" weights a sentence's own tokens, "attn_unmasked" those of the whole row,
      including padding (released code; one sentence per row); "first_token" is the paper's.
    product_order: "sum_then_product" as published, or "product_then_sum", in which the rank has an
      effect.
    fuse, layer_latents: `fuse="offset"` and `layer_latents` other than "chain" are ablations of the
      paper, which does not specify what replaces the product.
    """

    decoder: StackConfig
    encoder: StackConfig | None = None
    latent: int = setting(32, low=1, high=2**20, help="Width of each layer's z.")
    rank: int = setting(4, low=1, high=2**16, help="Rank of the tensor product.")
    conditional: bool = setting(False, help="Write a text given a source text; needs data.source.")
    begin_layer: int = setting(0, low=0, high=4_095, help="First layer that has a latent.")
    end_layer: int = setting(
        -1, low=0, high=4_095, also=(-1,), help="Last layer that has a latent; -1: the top layer."
    )
    pool: str = setting("attn_masked", choices=POOLS, help="Pooling of the encoder's states.")
    product_order: str = setting(
        "sum_then_product",
        choices=fusion.ORDERS,
        help="Order of the product.",
        needs=Needs(lambda c: c.fuse == "product", "fuse is not product"),
    )
    tie_lm_head: bool = setting(
        False, help="Whether the output head is the token embedding; as released, it is a new one."
    )
    use_bow: bool = setting(
        False, help="Add a loss for predicting the text's words from the top latent."
    )
    learn_prior1: bool = setting(
        True, help="Whether the first latent's prior is learned; false (paper): N(0, I)."
    )
    cvae_posterior: str = setting(
        "concat_text",
        choices=CVAE_POSTERIORS,
        help="What the encoder reads: source and text as one (released), or text only (xc, paper).",
        needs=Needs(lambda c: c.conditional, "conditional is false"),
    )
    clip: float = setting(
        5.0,
        above=0.0,
        high=100.0,
        help="Means and log-variances are clipped to +- this, as released.",
    )
    fuse: str = setting(
        "product",
        choices=FUSIONS,
        help="How z reaches a layer: the tensor product, or a linear map added to its input.",
    )
    layer_latents: str = setting(
        "chain",
        choices=LAYER_LATENTS,
        help="How latents of layers relate: conditioned on those below, independent, or shared.",
    )
    source: str = setting(
        "prefix",
        choices=SOURCES,
        help="Where the decoder reads the source: in front of the text, or by cross-attention.",
        needs=Needs(lambda c: c.conditional, "conditional is false"),
    )
    share_embedding: bool = setting(
        False,
        help="Whether the encoder uses the decoder's token embedding, as in BART.",
        needs=Needs(lambda c: c.encoder is not None, "there is no separate encoder"),
    )

    def __post_init__(self) -> None:
        layers = min(self.encoding.layers, self.writing.layers)
        if not 0 <= self.begin_layer <= self.last_layer < layers:
            raise ValueError(
                f"begin_layer is {self.begin_layer}, end_layer {self.end_layer}; expected layers "
                f"from 0 to {layers - 1}, in this order"
            )
        if self.conditional and not self.learn_prior1:
            raise ValueError(
                "learn_prior1 is off: the first latent of a conditional model would not know the "
                "source; set it to true"
            )
        if getattr(self.decoder, "cross", False):
            raise ValueError("decoder.cross is on; leave it unset, as source=cross sets it")

    @property
    def writing(self) -> Any:
        """The config of the stack that decodes."""
        return self.decoder

    @property
    def encoding(self) -> Any:
        """The config of the stack that encodes."""
        return self.decoder if self.encoder is None else self.encoder

    @property
    def last_layer(self) -> int:
        """The last layer with a latent."""
        return self.writing.layers - 1 if self.end_layer == -1 else self.end_layer

    @property
    def fused(self) -> int:
        """Number of layers with a latent."""
        return self.last_layer - self.begin_layer + 1

    @property
    def groups(self) -> int:
        """Number of latents: one for each such layer, or one shared by all."""
        return 1 if self.layer_latents == "shared" else self.fused


def decoder_of(config: DellaConfig) -> tuple[Stack, Injection]:
    """The decoder stack and the injection of the latents into it."""
    needs = ["taps" if config.fuse == "offset" else "values"]
    needs += ["cross"] if config.source == "cross" else []
    stack = stack_of(
        config.decoder, "model.decoder", "decode", *needs, own_head=not config.tie_lm_head
    )
    if config.source == "cross":  # this ability has been checked above
        with_cross = dataclasses.replace(config.decoder, cross=True)  # pyright: ignore[reportCallIssue]
        stack = stack_of(with_cross, "model.decoder", own_head=not config.tie_lm_head)
    place = (config.begin_layer, config.fused, config.latent)
    if config.fuse == "offset":
        injection = layer_offset(stack, *place)
    else:
        injection = fusion.fusion(stack, *place, config.rank, config.product_order)
    return stack, injection if config.layer_latents != "shared" else _shared(
        injection, config.fused
    )


def _shared(injection: Injection, layers: int) -> Injection:
    """An injection per layer that gives all layers the same latent."""

    def reach(
        params: Params, z_egz: Array, rows: int, once: Once = None, *, decoding: bool = False
    ) -> Reach:
        z_elz = jnp.repeat(z_egz, layers, axis=1)
        return injection.reach(params, z_elz, rows, once, decoding=decoding)

    return injection._replace(reach=reach)


def encoder_of(config: DellaConfig) -> Stack:
    """The stack that encodes."""
    where = "model.decoder" if config.encoder is None else "model.encoder"
    return stack_of(config.encoding, where, "encode", "layers")


def limits(config: DellaConfig) -> dict[str, int]:
    """Maximum tokens per example and side; source and target share the `dec` side."""
    reads, writes = encoder_of(config).longest, room(*decoder_of(config))
    sides = {"enc": reads, "dec": writes}
    if not config.conditional:
        return sides
    return sides | {"cond": reads if config.source == "cross" else min(reads, writes)}


def joined(config: DellaConfig) -> tuple[str, ...]:
    """Sides whose examples are prefixed with the source."""
    if not config.conditional:
        return ()
    decoder = ("dec",) if config.source == "prefix" else ()
    return (*decoder, "enc") if config.cvae_posterior == "concat_text" else decoder


class _Source(NamedTuple):
    """The source text's addends to the heads of each group, and its cross-attention states."""

    prior_egcz: Array
    posterior_egcz: Array | None
    states: RowStates | None = None


def _init(config: DellaConfig, key: Key[Array, ""]) -> Params:
    z, (stack, injection) = config.latent, decoder_of(config)
    keys = iter(split_key(key, 11))
    state, latent = jnp.zeros((1, config.encoding.width)), jnp.zeros((1, z))

    def stacked(layer: Projection, x: Array) -> Params:
        return init_stack(lambda k: layer.init(k, x)["params"], next(keys), config.groups)

    def text() -> Params:
        return stacked(Projection((2, z), ("embed",), (None, "latent"), use_bias=False), state)

    def chain(features: tuple[int, ...]) -> Params:
        out = (*[None] * (len(features) - 1), "latent")
        return stacked(Projection(features, (None,), out), latent)

    params = {
        "decoder": stack.init(next(keys)),
        # Read by both prior and posterior. The keys are drawn in any case, so that the other
        # parameters have the same initial values.
        "latent": {"chain": {"state": chain((z,)), "latent": chain((z,))}},
        "prior": {"head": {"chain": chain((2, z))}},
        "posterior": {"head": {"chain": chain((2, z)), "text": text()}},
    }
    params["decoder"] |= injection.init(next(keys))
    if config.layer_latents != "chain":
        # The heads then read zeros, and their kernels have no effect; stored runs contain them.
        del params["latent"]
    if config.pool != "first_token":
        query = Projection((), ("embed",), (), use_bias=False)
        params["posterior"]["pool"] = stacked(query, state)
    if config.conditional:
        params["prior"]["head"]["source"] = text()
        if config.cvae_posterior == "xc":
            params["posterior"]["head"]["source"] = text()
    if config.use_bow:
        params["decoder"]["bow"] = _bow(config).init(next(keys), latent)["params"]
    if config.encoder is not None:
        params["encoder"] = encoder_of(config).init(jax.random.fold_in(key, 1), head=False)
    if config.share_embedding:
        embed = params["encoder"]["embed"]
        theirs, ours = embed.pop("token")["table"], params["decoder"]["embed"]["token"]["table"]
        if theirs.value.shape != ours.value.shape:
            raise ConfigError(
                f"model.share_embedding is on, but model.encoder embeds with a table of "
                f"{list(theirs.value.shape)} and model.decoder with one of "
                f"{list(ours.value.shape)}; give both the same"
            )
    return params


def _encoder_params(config: DellaConfig, params: Params) -> Params:
    """The parameters of the stack that encodes."""
    if config.encoder is None:
        return params["decoder"]
    if not config.share_embedding:
        return params["encoder"]
    encoder_params, token = params["encoder"], params["decoder"]["embed"]["token"]
    return encoder_params | {"embed": encoder_params.get("embed", {}) | {"token": token}}


def _bow(config: DellaConfig) -> Projection:
    start = uniform_fan_in(config.latent)
    return Projection((config.writing.width,), ("latent",), ("embed",), kernel_init=start)


def chain(config: DellaConfig) -> Chain:
    """The chain of latents, from the first layer with a latent to the last."""

    def linear(p: Params, x_ez: Array, out: str) -> Array:
        y = jnp.einsum(f"ez,z{out}->e{out}", x_ez, p["kernel"].astype(x_ez.dtype))
        return y + p["bias"].astype(x_ez.dtype)[None]

    def summary(p: Params, s_ez: Array, z_ez: Array) -> Array:
        if config.layer_latents != "chain":
            return jnp.zeros_like(s_ez)
        below_ez = linear(p["chain"]["state"], s_ez, "y") + linear(p["chain"]["latent"], z_ez, "y")
        return jnp.tanh(below_ez)

    return Chain(
        groups=config.groups,
        width=config.latent,
        params_of=lambda params: {
            **({"chain": params["latent"]["chain"]} if config.layer_latents == "chain" else {}),
            "prior": params["prior"]["head"]["chain"],
            "posterior": params["posterior"]["head"]["chain"],
        },
        summary=summary,
        prior=lambda p, s_ez: linear(p["prior"], s_ez, "cy"),
        posterior=lambda p, s_ez: linear(p["posterior"], s_ez, "cy"),
        source_of=lambda cond: None if cond is None else cond.prior_egcz,
        clip=config.clip,
        learned_first=config.learn_prior1,
    )


def _read(
    config: DellaConfig,
    params: Params,
    side: Side,
    slots: int,
    drop: Key[Array, ""] | None = None,
    all_layers: bool = False,
) -> tuple[Float[Array, "e g d"], Float[Array, "b t d"]]:
    """`pooled`, and the states after the last layer run; `all_layers` runs all layers."""
    query_gd = None
    if config.pool != "first_token":
        query_gd = params["posterior"]["pool"]["kernel"]
    x_ged, x_btd = layer_vectors(
        encoder_of(config),
        _encoder_params(config, params),
        side,
        slots,
        query_gd,
        masked=config.pool != "attn_unmasked",
        first=config.last_layer - config.groups + 1,
        groups=config.groups,
        drop=drop,
        all_layers=all_layers,
    )
    return jnp.moveaxis(x_ged, 0, 1), x_btd


def pooled(
    config: DellaConfig, params: Params, side: Side, slots: int, drop: Key[Array, ""] | None = None
) -> Float[Array, "e g d"]:
    """One vector per example and layer with a latent, from one bidirectional pass.

    Raises: ValueError for pool "attn_unmasked" with more than one example per row.
    """
    return _read(config, params, side, slots, drop)[0]


def _addend(p: Params, x_egd: Float[Array, "e g d"]) -> Float[Array, "e g 2 z"]:
    x_egd = x_egd.astype(accum_dtype(x_egd.dtype))
    return jnp.einsum("egd,gdcz->egcz", x_egd, p["kernel"].astype(x_egd.dtype))


def build(config: DellaConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    links, (stack, injection) = chain(config), decoder_of(config)
    init, axes = unboxed(lambda key: _init(config, key))

    def condition(
        params: Params, batch: Batch, drop: Key[Array, ""] | None = None
    ) -> _Source | None:
        if not config.conditional:
            return None
        if batch.cond is None:
            raise ValueError("a conditional model needs the `cond` side of the batch, the source")
        attended = config.source == "cross"
        drop = fold_key(drop, 2)
        c_egd, x_bsd = _read(config, params, batch.cond, batch.slots, drop, all_layers=attended)
        states = RowStates(x_bsd, batch.cond.segment_bt) if attended else None
        prior_egcz = _addend(params["prior"]["head"]["source"], c_egd)
        if config.cvae_posterior != "xc":
            return _Source(prior_egcz, None, states)
        return _Source(prior_egcz, _addend(params["posterior"]["head"]["source"], c_egd), states)

    def encode(
        params: Params, batch: Batch, drop: Key[Array, ""] | None, cond: _Source | None
    ) -> ChainPost:
        assert batch.enc is not None  # `limits` requires this side
        x_egd = pooled(config, params, batch.enc, batch.slots, fold_key(drop, 0))
        text_egcz = _addend(params["posterior"]["head"]["text"], x_egd)
        if cond is not None and cond.posterior_egcz is not None:
            text_egcz = text_egcz + cond.posterior_egcz
        return ChainPost(text_egcz)

    def aux(params: Params, ctx: Context, draws: Draws) -> dict[str, Array]:
        if not config.use_bow:
            return {}
        bow_ed = apply(_bow(config), params["decoder"]["bow"], draws.z_kegz[0][:, -1])
        bow_ed = bow_ed.astype(config.writing.dtype)
        log_p_ev = jax.nn.log_softmax(stack.logits(params["decoder"], bow_ed), axis=-1)
        side = ctx.batch.dec
        rows = side.token_bt.shape[0]
        log_p_bsv = log_p_ev.reshape(rows, -1, log_p_ev.shape[-1])
        slot_bt = jnp.maximum(side.segment_bt - 1, 0)
        nats_bt = log_p_bsv[jnp.arange(rows)[:, None], slot_bt, side.token_bt]
        return {"bow": -per_example(jnp.where(ctx.batch.scored_bt, nats_bt, 0.0), ctx.batch)}

    # The source reaches the decoder as the prefix of `dec` and of a prompt, or through its states.
    states_of = (lambda cond: cond.states) if config.source == "cross" else None
    gen = generator(stack, injection, states_of=states_of)._replace(condition=condition, aux=aux)

    def features(params: Params, batch: Batch, drop: Key[Array, ""] | None = None, *, cond=None):
        del cond
        assert batch.enc is not None
        x_egd = pooled(config, params, batch.enc, batch.slots, fold_key(drop, 0))
        return x_egd[:, -1].astype(accum_dtype(x_egd.dtype))  # the top layer's

    posterior = layerwise.posterior(links, encode)._replace(features=features)
    shape = (config.groups, config.latent)
    return TextVAE(init, axes, layerwise.prior(links), gen, posterior, shape, "layer")


def _tiny(vocab: Vocab, **stack: object) -> DellaConfig:
    return DellaConfig(small.decoder(vocab["dec"], **stack), latent=5, rank=2)


def _parts(model: ConfigDict) -> tuple[PretrainedPart, ...]:
    if model.get("share_embedding"):
        return both_part(model.decoder, model.get("source") == "cross")
    encoder = stack_part(model.encoder, "encoder") if model.get("encoder") else ()
    decoder = ConfigDict(model.decoder.to_dict())
    decoder.cross = model.get("source") == "cross"  # see `decoder_of`
    return encoder + stack_part(decoder, "decoder")


def _adjust(model: ConfigDict) -> list[str]:
    """Sets `model.encoder` to the decoder's stack if they share an embedding and thus a file.

    Each latent reads its own layer of the encoder.
    """
    encoder = model.get("encoder")
    if encoder and model.get("share_embedding"):
        model.encoder = ConfigDict(model.decoder.to_dict())
        return [f"model.encoder is the {model.decoder.backbone} encoder of the same files"]
    if model.end_layer != -1 or not encoder or encoder.layers >= model.decoder.layers:
        return []
    model.end_layer = encoder.layers - 1
    return [f"model.end_layer is {model.end_layer}, as the encoder has {encoder.layers} layers"]


FAMILIES.register("della")(
    Family(
        DellaConfig, build, limits, _tiny, joined, _parts, originals.della, "della", adjust=_adjust
    )
)
