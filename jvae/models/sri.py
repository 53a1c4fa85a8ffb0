"""SRI: a generator without an encoder, z found by short-run Langevin dynamics.

Source: Pang et al. 2021, arXiv 2106.02513, and the released code. The generator is that of
`jvae.models.lstm_vae`; a second config puts the same inference on a Transformer decoder that reads
z as Optimus does. `jvae.latent.short_run` names the deviations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Key

from jvae.api import Batch, Generator, Params, Prior, Sampler, TextVAE
from jvae.errors import ConfigError
from jvae.fields import setting
from jvae.latent import mixture, short_run, volume, warm_up
from jvae.latent.choice import Choice
from jvae.latent.priors import STANDARD_NORMAL, build_prior
from jvae.latent.short_run import ChainConfig
from jvae.latent.warm_up import WarmUp
from jvae.models import lstm_vae, optimus
from jvae.models.common import unboxed
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.tiny import lstm as tiny_lstm
from jvae.models.tiny import transformer as tiny_transformer
from jvae.nn import config as stack
from jvae.nn.config import TransformerConfig
from jvae.nn.lstm import LstmConfig
from jvae.pretrained.parts import GPT2_DECODER


@dataclass(frozen=True)
class SriConfig:
    """Sizes of the LSTM generator, the chain, and how training changes the chain."""

    decoder: LstmConfig
    latent: int = setting(32, **stack.LATENT)
    chain: ChainConfig = ChainConfig()
    warm_up: WarmUp = WarmUp()
    prior: Choice = STANDARD_NORMAL


@dataclass(frozen=True)
class SriTransformerConfig:
    """The same over a Transformer decoder; for `use_*` see `jvae.models.optimus`."""

    decoder: TransformerConfig
    latent: int = setting(32, **stack.LATENT)
    use_memory: bool = setting(True, help="z as a key and value of every layer.")
    use_embedding: bool = setting(True, help="z added to every input embedding.")
    chain: ChainConfig = ChainConfig()
    warm_up: WarmUp = WarmUp()
    prior: Choice = STANDARD_NORMAL

    def __post_init__(self) -> None:
        if not (self.use_memory or self.use_embedding):
            raise ValueError(
                "use_memory and use_embedding are both off: z would never reach the decoder"
            )
        if self.chain.schedule == "learned" and self.decoder.attention != "xla":
            raise ValueError(
                f"chain.schedule learned needs second derivatives, which decoder.attention "
                f"{self.decoder.attention} has not; set that to xla"
            )


def limits(config: SriConfig) -> dict[str, int]:
    """Most tokens of one example; there is no encoder side."""
    del config
    return {"dec": lstm_vae.UNBOUNDED}


def build(config: SriConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    decoder, latent = config.decoder, config.latent
    init, axes = unboxed(lambda key: {"decoder": lstm_vae.init_decoder(decoder, latent, key)})
    return _with_chain(lstm_vae.generator(decoder, latent), init, axes, config)


def transformer_limits(config: SriTransformerConfig) -> dict[str, int]:
    """Most tokens of one example; memory takes position 0."""
    return {"dec": config.decoder.positions - int(config.use_memory)}


def build_transformer(config: SriTransformerConfig) -> TextVAE:
    """The model of a config; see `jvae.api.TextVAE`."""
    # The encoder of this Optimus is never initialised nor run: its generator alone stays.
    whole = optimus.build(
        optimus.OptimusConfig(
            encoder=config.decoder,
            decoder=config.decoder,
            latent=config.latent,
            use_memory=config.use_memory,
            use_embedding=config.use_embedding,
        )
    )

    def init(key: Key[Array, ""]) -> Params:
        return {"decoder": whole.init(key)["decoder"]}

    return _with_chain(whole.gen, init, {"decoder": whole.axes["decoder"]}, config)


def _with_chain(
    gen: Generator,
    init: Callable[[Array], Params],
    axes: Any,
    config: SriConfig | SriTransformerConfig,
) -> TextVAE:
    """A generator whose posterior is the short run, with parameters for learned step sizes.

    Raises: ConfigError for a prior with parameters, which the loss of short-run inference would
      never train.
    """
    parts = build_prior(config.prior, (1, config.latent))
    if parts.init is not None:
        raise ConfigError(
            f"model.prior.kind is {config.prior.kind!r}, which has parameters; the loss of "
            "short-run inference holds no prior and would never train them. Choose a prior without "
            "parameters, such as standard_normal, or a family with an encoder"
        )
    sizes = {"posterior": raw} if (raw := short_run.init_sizes(config.chain)) else {}
    posterior = short_run.attach(gen, parts.prior, config.chain)
    return TextVAE(
        init=lambda key: init(key) | sizes,
        axes=axes | ({"posterior": {"size": (None,)}} if sizes else {}),
        prior=parts.prior,
        gen=gen,
        post=posterior._replace(sampler=_sampler(gen, parts.prior, config)),
        latent_shape=(1, config.latent),
    )


def _sampler(gen: Generator, prior: Prior, config: SriConfig | SriTransformerConfig) -> Sampler:
    """What the short run brings to training and to metrics."""
    chain = config.chain
    from_prior = ChainConfig(steps=0, chains=chain.chains, chunk=chain.chunk)
    learn = volume.learn_sizes(gen, prior, chain) if chain.schedule == "learned" else None
    metric = short_run.fitted(gen, prior, chain)

    def tune(params: Params, batch: Batch, key: Key[Array, ""]) -> Params:
        assert learn is not None
        raw_k, _ = learn(params, params["posterior"]["size"], batch, key)
        return params | {"posterior": {"size": raw_k}}

    return Sampler(
        measure=warm_up.measure(gen, prior, chain, config.warm_up),
        metric=metric,
        baseline=short_run.fitted(gen, prior, from_prior),
        proposal=mixture.with_prior(prior, metric),
        tune=None if learn is None else tune,
        config=chain,
    )


# Short steps: long ones multiply the rounding errors that packings differ by.
_TINY_CHAIN = ChainConfig(2, "constant", step_size=0.2, temperature=1.0, chains=4, chunk=4)


def _tiny(vocab: Vocab, **stack: Any) -> SriConfig:
    return SriConfig(tiny_lstm(vocab["dec"], **stack), latent=5, chain=_TINY_CHAIN)


def _tiny_transformer(vocab: Vocab, **stack: Any) -> SriTransformerConfig:
    decoder = tiny_transformer(vocab["dec"], **stack)
    return SriTransformerConfig(decoder, latent=5, chain=_TINY_CHAIN)


FAMILIES.register("sri")(Family(SriConfig, build, limits, _tiny, preset="sri"))
FAMILIES.register("sri_transformer")(
    Family(
        SriTransformerConfig,
        build_transformer,
        transformer_limits,
        _tiny_transformer,
        parts=(GPT2_DECODER,),
        preset="sri:transformer",
    )
)
