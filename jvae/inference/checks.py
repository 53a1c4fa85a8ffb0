"""Arguments of the text tools, checked where they come in."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import Float

from jvae.data.text_rules import BadLine, clean
from jvae.errors import DataError


def listed(texts: Any, what: str = "sentence") -> list[str]:
    """Texts as a list, each by the rules that corpora are read by (`jvae.data.text_rules`).

    Raises: TypeError if it is one string or not an ordered collection, or one of them is not text;
      DataError naming the first text that is empty or holds what no corpus may hold.
    """
    ordered = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping | Set)
    if not ordered:
        raise TypeError(
            f"expected a list of {what}s, not "
            + ("one string" if isinstance(texts, str | bytes) else type(texts).__name__)
        )
    cleaned: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what} {i + 1} is of type {type(text).__name__}; expected text")
        one = clean(text, "is empty; there is nothing to encode")
        if isinstance(one, BadLine):
            raise DataError(f"{what} {i + 1} {one.detail}")
        cleaned.append(one)
    return cleaned


def latents(z_egz: Any, expected: tuple[int | str, ...]) -> Float[np.ndarray, "n g z"]:
    """Latents as a float32 array.

    Args:
      expected: their shape; its first entry is a name where any number goes.
    Raises: ValueError for another shape, or a value that is no finite number.
    """
    shown = f"({', '.join(map(str, expected))})"
    try:
        found = np.asarray(z_egz, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"latents are no array of numbers ({error}); expected {shown}") from None
    if found.ndim != 3 or any(
        wanted not in (size, "n") for size, wanted in zip(found.shape, expected, strict=True)
    ):
        raise ValueError(f"latents have shape {found.shape}; expected {shown}")
    if len(wrong := np.flatnonzero(~np.isfinite(found).all(axis=(1, 2)))):
        raise ValueError(f"latent {wrong[0] + 1} holds a value that is not finite")
    return found
