"""The exceptions jvae raises on purpose. Each message says what was wrong, where, and what to do;
`main` prints it alone.
"""

from typing import Any

import numpy as np


class JvaeError(Exception):
    """Base of every error a user can cause; shown without a traceback."""


class ConfigError(JvaeError):
    """A config key or value that cannot be used."""


class DataError(JvaeError):
    """A corpus, a line or a tokenizer that cannot be used."""


class CheckpointError(JvaeError):
    """A working directory or checkpoint that cannot be read, written or matched with the config."""


class WeightsError(JvaeError):
    """Pretrained weights that do not fit the model or cannot be read."""


class TrainingError(JvaeError):
    """A run that cannot go on, such as one whose loss is no longer finite."""


def whole(name: str, value: Any, least: int) -> None:
    """Raises: ValueError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
