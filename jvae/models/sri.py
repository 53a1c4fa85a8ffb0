"""SRI: a generator without an encoder; z is inferred by short-run Langevin dynamics.

Source: Pang et al. 2021, arXiv 2106.02513, and the released code. The generator is that of
`jvae.models.lstm_vae`. A second config uses the same inference with a transformer decoder, which
reads z as Optimus does. See `jvae.latent.short_run` for the deviations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Key

from jvae.api import SPHERE, Batch, Generator, Params, Prior, Sampler, TextVAE
from jvae.backbones import small
from jvae.errors import ConfigError
from jvae.fields import setting
from jvae.latent import annealing, mixture, short_run, volume
from jvae.latent.annealing import Annealing
from jvae.latent.choice import Choice
from jvae.latent.priors import STANDARD_NORMAL, build_prior
from jvae.latent.short_run import ChainConfig
from jvae.models import optimus, recurrent
from jvae.models.common import unboxed
from jvae.models.family import FAMILIES, Family, Vocab
from jvae.models.generator import generator, room
from jvae.nn import config as sizes
from jvae.nn.backbone import StackConfig, stack_of
from jvae.pretrained.parts import stack_part


@dataclass(frozen=True)
class SriConfig:
    """Sizes of the recurrent generator, the chain, and the chain's settings in training."""

    decoder: StackConfig
    latent: int = setting(32, **sizes.LATENT)
    chain: ChainConfig = ChainConfig()
    annealing: Annealing = Annealing()
    prior: Choice = STANDARD_NORMAL


@dataclass(frozen=True)
class SriTransformerConfig:
    """Like `SriConfig`, with a transformer decoder; injections are as in `jvae.models.optimus`."""

    decoder: StackConfig
    latent: int = setting(32, **sizes.LATENT)
    vectors: int = setting(
        1, low=1, high=4_096, help="Latent vectors per text, each of width latent."
    )
    use_memory: bool = setting(True, help="Inject z as a key and value in every layer.")
    use_embedding: bool = setting(True, help="Add z to every input embedding.")
    tokens: int = setting(0, low=0, high=2**16, help="Prefix tokens per latent vector; 0: none.")
    chain: ChainConfig = ChainConfig()
    annealing: Annealing = Annealing()
    prior: Choice = STANDARD_NORMAL
    use_softmax: bool = setting(False, help="Add z to the output scores of every token.")

    def __post_init__(self) -> None:
        optimus.check_reached(self)
        kernel = getattr(self.decoder, "attention", "xla")
        if self.chain.schedule == "learned" and kernel != "xla":
            raise ValueError(
                "chain.schedule learned needs second derivatives, which decoder.attention "
                f"{kernel} lacks; set it to xla"
            )


def limits(config: SriConfig) -> dict[str, int]:
    """Maximum tokens per example; there is no encoder side."""
    return {"dec": stack_of(config.decoder, "model.decoder", "recurrent").longest}


def build(config: SriConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""
    stack, latent = stack_of(config.decoder, "model.decoder", "recurrent"), config.latent
    init, axes = unboxed(lambda key: {"decoder": recurrent.init(stack, latent, key)})
    return _with_chain(recurrent.generator(stack, latent), init, axes, config, (1, latent))


def transformer_limits(config: SriTransformerConfig) -> dict[str, int]:
    """Maximum tokens per example, after any vectors in front of the text."""
    return {"dec": room(*optimus.decoder_of(config))}


def build_transformer(config: SriTransformerConfig) -> TextVAE:
    """Builds the model of a config; see `jvae.api.TextVAE`."""

    def init_boxed(key: Key[Array, ""]) -> Params:
        # Split keys as Optimus does, since this is its generator.
        keys = jax.random.split(key, 6)
        return {"decoder": optimus.init_decoder(config, keys[1], keys[4], keys[5])}

    init, axes = unboxed(init_boxed)
    gen, shape = generator(*optimus.decoder_of(config)), (config.vectors, config.latent)
    return _with_chain(gen, init, axes, config, shape)


def _with_chain(
    gen: Generator,
    init: Callable[[Array], Params],
    axes: Any,
    config: SriConfig | SriTransformerConfig,
    shape: tuple[int, int],
) -> TextVAE:
    """Combines a generator with the short-run posterior and parameters for learned step sizes.

    Raises: ConfigError for a prior with parameters, which the loss of short-run inference would
      never train, or for a prior on the sphere, which Langevin steps would leave.
    """
    parts = build_prior(config.prior, shape)
    if parts.prior.support == SPHERE:
        raise ConfigError(
            f"model.prior.kind is {config.prior.kind!r}, whose latents have length 1; the steps of "
            "short-run inference would leave that sphere. Choose standard_normal, or a family with "
            "an encoder"
        )
    if parts.init is not None:
        raise ConfigError(
            f"model.prior.kind is {config.prior.kind!r}, which has parameters; the loss of "
            "short-run inference has no prior term and would never train them. Choose a prior "
            "without "
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
        latent_shape=shape,
    )


def _sampler(gen: Generator, prior: Prior, config: SriConfig | SriTransformerConfig) -> Sampler:
    """The short run's functions for training and metrics."""
    chain = config.chain
    learn = volume.learn_sizes(gen, prior, chain) if chain.schedule == "learned" else None
    metric = short_run.fitted(gen, prior, chain)

    def tune(params: Params, batch: Batch, key: Key[Array, ""]) -> Params:
        assert learn is not None
        raw_k, _ = learn(params, params["posterior"]["size"], batch, key)
        return params | {"posterior": {"size": raw_k}}

    return Sampler(
        measure=annealing.measure(gen, prior, chain, config.annealing),
        metric=metric,
        baseline=short_run.from_prior(gen, prior, chain),
        proposal=mixture.with_prior(prior, metric),
        tune=None if learn is None else tune,
        config=chain,
    )


# Short steps, since long ones amplify the rounding differences between packings.
_TINY_CHAIN = ChainConfig(2, "constant", step_size=0.2, temperature=1.0, chains=4, chunk=4)


def _tiny(vocab: Vocab, **stack: object) -> SriConfig:
    return SriConfig(small.recurrent(vocab["dec"], **stack), latent=5, chain=_TINY_CHAIN)


def _tiny_transformer(vocab: Vocab, **stack: object) -> SriTransformerConfig:
    decoder = small.decoder(vocab["dec"], **stack)
    return SriTransformerConfig(decoder, latent=5, chain=_TINY_CHAIN)


FAMILIES.register("sri")(Family(SriConfig, build, limits, _tiny, preset="sri"))
FAMILIES.register("sri_transformer")(
    Family(
        SriTransformerConfig,
        build_transformer,
        transformer_limits,
        _tiny_transformer,
        parts=lambda model: stack_part(model.decoder, "decoder"),
        preset="sri:transformer",
    )
)
