"""The exceptions that jvae raises on purpose.

Each message states what is wrong, where, and how to fix it. `main` prints the message without a
traceback.
"""

from typing import Any

import numpy as np


class JvaeError(Exception):
    """Base class of all errors that a user can cause; shown without a traceback."""


class ConfigError(JvaeError):
    """A config key or value that cannot be used."""


class InputError(JvaeError, ValueError):
    """An argument of a Python call that cannot be used."""


class InputTypeError(JvaeError, TypeError):
    """An argument of a Python call that has the wrong type."""


class DataError(JvaeError):
    """A corpus, a line or a tokenizer that cannot be used."""


class CheckpointError(JvaeError):
    """A working directory or checkpoint that cannot be read or written, or conflicts with the
    config.
    """


class WeightsError(JvaeError):
    """Pretrained weights that do not fit the model or cannot be read."""


class TrainingError(JvaeError):
    """A run that cannot continue, for example because its loss is no longer finite."""


def whole(name: str, value: Any, least: int, most: int = 10_000_000) -> None:
    """Raises: InputError unless `value` is a whole number from `least` to `most`."""
    number = not isinstance(value, bool) and isinstance(value, int | np.integer)
    if not number or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")
    if value > most:
        raise InputError(f"{name} is {value!r}; expected a whole number of at most {most:,}")


def number(name: str, value: Any) -> None:
    """Raises: InputError unless `value` is a finite number."""
    real = not isinstance(value, bool) and isinstance(value, int | float | np.number)
    if not real or not np.isfinite(value):
        raise InputError(f"{name} is {value!r}; expected a finite number")
