"""The systems of jvae. Each file holds one: a small config dataclass and `build(config) -> TextVAE`."""

from collections.abc import Callable

from jvae.api import TextVAE
from jvae.errors import ConfigError
from jvae.models import lm, optimus

FAMILIES: dict[str, tuple[type, Callable[..., TextVAE]]] = {
    "lm": (lm.LmConfig, lm.build),
    "optimus": (optimus.OptimusConfig, optimus.build),
}


def family(name: str) -> tuple[type, Callable[..., TextVAE]]:
    """Config class and builder of a system. Raises ConfigError for an unknown name."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family is {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
