"""Checks types and shapes at function boundaries, by annotation, while tests run.

Importing this module does it for whatever is imported from `PACKAGES` afterwards; users of jvae pay
nothing. `JAXTYPING_DISABLE=1` turns the checks off.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Pure functions of arrays. What reads files and configs is left out: it would be slower by as much.
PACKAGES = (
    *("api", "backbones", "decode", "fitted", "inference", "injections", "latent", "models"),
    *("nn", "training"),
)
_CONFIG = BeartypeConf(is_pep484_tower=True)  # an int is a float
_checkers: dict[tuple[str, str, str], Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping calls with a function's signature. Closures are made anew in every trace, so
    one place in the source gets one checker: to make it takes 2 ms, to find it a tenth of that.
    """
    key = (function.__module__, function.__qualname__, repr(function.__annotations__))
    if key not in _checkers:
        _checkers[key] = beartype(conf=_CONFIG)(function)
    return _checkers[key]


install_import_hook([f"jvae.{name}" for name in PACKAGES], f"{__name__}.check")
