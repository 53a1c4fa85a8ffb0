"""The systems of jvae. Each file holds one: a small config dataclass and `build(config) ->
TextVAE`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvae.api import TextVAE
from jvae.errors import ConfigError
from jvae.models import lm, optimus, t5vae


class Family(NamedTuple):
    """One system.

    config: its config dataclass. build(config) makes the model. limits(config) gives the most
    tokens of one example per side that it reads, special tokens included.
    """

    config: type
    build: Callable[[Any], TextVAE]
    limits: Callable[[Any], dict[str, int]]


FAMILIES = {
    "lm": Family(lm.LmConfig, lm.build, lm.limits),
    "optimus": Family(optimus.OptimusConfig, optimus.build, optimus.limits),
    "t5_vae": Family(t5vae.T5VaeConfig, t5vae.build, t5vae.limits),
}


def family(name: str) -> Family:
    """A system by name. Raises ConfigError for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family is {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
