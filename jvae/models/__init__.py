"""The systems of jvae. Each file holds one: a small config dataclass and `build(config) ->
TextVAE`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvae.api import TextVAE
from jvae.config import nearest
from jvae.errors import ConfigError
from jvae.latent.sampler import Sampler
from jvae.models import adavae, della, lm, lstm_vae, optimus, sri, t5vae


class Family(NamedTuple):
    """One system.

    config: its config dataclass. build(config) makes the model. limits(config) gives the most
    tokens of one example per side that it reads, special tokens included. sampler(config, model):
    what a model whose posterior is a sampler adds to training and metrics; None for the others.
    joined(config) names the sides whose examples begin with the source, for conditional models that
    read source and text as one; none for the others.
    """

    config: type
    build: Callable[[Any], TextVAE]
    limits: Callable[[Any], dict[str, int]]
    sampler: Callable[[Any, TextVAE], Sampler] | None = None
    joined: Callable[[Any], tuple[str, ...]] = lambda config: ()


FAMILIES = {
    "adavae": Family(adavae.AdaVaeConfig, adavae.build, adavae.limits),
    "della": Family(della.DellaConfig, della.build, della.limits, joined=della.joined),
    "lm": Family(lm.LmConfig, lm.build, lm.limits),
    "lstm_lm": Family(lstm_vae.LstmLmConfig, lstm_vae.build_lm, lstm_vae.lm_limits),
    "lstm_vae": Family(lstm_vae.LstmVaeConfig, lstm_vae.build, lstm_vae.limits),
    "optimus": Family(optimus.OptimusConfig, optimus.build, optimus.limits),
    "sri": Family(sri.SriConfig, sri.build, sri.limits, sri.sampler),
    "sri_transformer": Family(
        sri.SriTransformerConfig, sri.build_transformer, sri.transformer_limits, sri.sampler
    ),
    "t5_vae": Family(t5vae.T5VaeConfig, t5vae.build, t5vae.limits),
}


def family(name: str) -> Family:
    """A system by name. Raises ConfigError for an unknown one."""
    if name not in FAMILIES:
        known = sorted(FAMILIES)
        raise ConfigError(
            f"model.family is {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    return FAMILIES[name]
