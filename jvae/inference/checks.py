"""Checks the arguments of the text tools."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import Float

from jvae import errors
from jvae.data.text_rules import BadLine, clean
from jvae.decode import DecodeConfig
from jvae.errors import ConfigError, DataError, InputError, InputTypeError, JvaeError
from jvae.inference.settings import DecodeSettings


def listed(texts: Any, what: str = "sentence") -> list[str]:
    """Returns texts as a list, cleaned by the same rules as corpora (`jvae.data.text_rules`).

    Raises: InputTypeError for a single string, an unordered collection, or an item that is not a
      string; DataError naming the first text that is empty or has invalid characters.
    """
    ordered = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping | Set)
    if not ordered:
        raise InputTypeError(
            f"expected a list of {what}s, not "
            + ("one string" if isinstance(texts, str | bytes) else type(texts).__name__)
        )
    cleaned: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"{what} {i + 1} is of type {type(text).__name__}; expected text")
        sentence = clean(text, "is empty; there is nothing to encode")
        if isinstance(sentence, BadLine):
            raise DataError(f"{what} {i + 1} {sentence.detail}")
        cleaned.append(sentence)
    return cleaned


def latents(z_egz: object, expected: tuple[int | str, ...]) -> Float[np.ndarray, "n g z"]:
    """Returns latents as a float32 array.

    Args:
      expected: their shape; its first entry is a name if any number is allowed.
    Raises: InputError for another shape, or a value that is not a finite number.
    """
    expected_shape = f"({', '.join(map(str, expected))})"
    try:
        latent_egz = np.asarray(z_egz)
        if np.iscomplexobj(latent_egz):
            raise InputError(f"latents are complex numbers; expected real ones, {expected_shape}")
        with np.errstate(over="ignore"):  # overflow of float32 is caught as not finite below
            latent_egz = latent_egz.astype(np.float32)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"latents are not an array of numbers ({error}); expected {expected_shape}"
        ) from None
    if latent_egz.ndim != 3 or any(
        expected_size not in (size, "n")
        for size, expected_size in zip(latent_egz.shape, expected, strict=True)
    ):
        raise InputError(f"latents have shape {latent_egz.shape}; expected {expected_shape}")
    if len(wrong := np.flatnonzero(~np.isfinite(latent_egz).all(axis=(1, 2)))):
        raise InputError(f"latent {wrong[0] + 1} holds a value that is not finite")
    return latent_egz


def seed(value: object) -> None:
    """Raises: InputError unless `value` is a valid seed: a whole number from 0 to 2**32 - 1."""
    errors.whole("seed", value, 0, 2**32 - 1)


# Decoding settings that only one method uses.
READ_BY: Mapping[str, str] = {
    **dict.fromkeys(("temperature", "top_k", "top_p"), "sample"),
    **dict.fromkeys(("beam_width", "length_penalty", "norm_length", "early_stopping"), "beam"),
}


def configured(section: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The settings of a config's `decode` section, with changes, that its method reads; a model
    knows the size of its batches and its longest text itself.
    """
    values = {k: v for k, v in section.items() if k not in ("batch", "max_length")} | changes
    method = values["method"]
    return {name: value for name, value in values.items() if READ_BY.get(name, method) == method}


def settings(values: DecodeSettings, method: str = "greedy") -> DecodeSettings:
    """The settings with a method: their own, or that of a setting which only one method uses
    (`temperature` selects "sample"), or `method`.

    Raises: ConfigError for an unknown setting, suggesting the closest match, and for one that has
      no effect with the method.
    """
    options = [field.name for field in dataclasses.fields(DecodeConfig)]
    for name in values:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
            near = near or [option for option in options if option.startswith(name[:4])][:1]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{name!r} is not a decoding setting{hint}; settings: {', '.join(options)}"
            )
    standard = DecodeConfig()
    changed = [n for n, v in values.items() if n in READ_BY and v != getattr(standard, n)]
    chosen = values.get("method") or (READ_BY[changed[0]] if changed else method)
    for name in changed:
        if READ_BY[name] != chosen:
            raise ConfigError(
                f"{name} has no effect with method={chosen!r}; it is read by {READ_BY[name]!r}"
            )
    return values | {"method": chosen}


def same_process(pid: int) -> None:
    """Raises: JvaeError in a forked child of the process that loaded the model, where JAX hangs."""
    if os.getpid() != pid:
        raise JvaeError(
            f"this model was loaded in process {pid}; this fork of it ({os.getpid()}) "
            "lacks JAX's threads. Load the model in the child, or start the child with "
            "multiprocessing.get_context('spawn')"
        )
