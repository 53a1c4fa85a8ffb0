"""Checks shapes at function boundaries, by annotation, while tests run.

Importing this module does it for whatever is imported from `PACKAGES` afterwards; users of jvae pay
nothing. `JAXTYPING_DISABLE=1` turns the checks off. Only arguments and results whose annotation has
a shape are checked: pyright sees to the others, and tests put stand-ins in their place.
"""

import functools
import operator
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

# Pure functions of arrays; functions on text check what users give them themselves.
PACKAGES = (
    *("api", "backbones", "decode", "fitted", "injections", "latent", "models"),
    *("nn", "training"),
)
_checkers: dict[tuple[str, str, str], Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping calls with a function's signature. Closures are made anew in every trace, so
    one place in the source gets one checker: to make it takes 2 ms, to find it a tenth of that.
    """
    key = (function.__module__, function.__qualname__, repr(function.__annotations__))
    if key not in _checkers:
        hints = function.__annotations__.items()
        function.__annotations__ = {name: _shaped(hint) or Any for name, hint in hints}
        _checkers[key] = beartype(function)
    return _checkers[key]


def _shaped(hint: Any) -> Any:
    """A hint that takes a NumPy array wherever it takes one of JAX, as JAX itself does; None for a
    hint without shapes.
    """
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        if hint.array_type is not jax.Array:
            return hint
        return hint.dtype[Union[jax.Array, np.ndarray], hint.dim_str]  # noqa: UP007
    parts, origin = get_args(hint), get_origin(hint)
    if origin is Callable or not any(map(_shaped, parts)):
        return None
    wider = tuple(_shaped(part) or part for part in parts)
    return functools.reduce(operator.or_, wider) if origin in (Union, UnionType) else origin[wider]


install_import_hook([f"jvae.{name}" for name in PACKAGES], f"{__name__}.check")
