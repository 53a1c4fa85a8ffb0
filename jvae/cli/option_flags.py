"""Parses flags `--SECTION.KEY=VALUE` that are not part of a config into a dataclass."""

from collections.abc import Mapping, Sequence
from typing import Any

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.fields import Field, defaults_of, fields_of


def parsed(
    cls: type, values: Mapping[str, str], section: str, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of flags, by field.

    Args:
      cls: the dataclass that declares the fields, with `jvae.fields.setting`.
      extra: further valid keys of the section, for messages.
    Raises: ConfigError for an unknown key or an invalid value.
    """
    fields, defaults, options = fields_of(cls), defaults_of(cls), {}
    for key, text in values.items():
        field = fields.get(key)
        if not isinstance(field, Field) or field.kind is None:
            keys = [*extra, *fields]
            raise ConfigError(
                f"--{section}.{key}: no such option{configs.nearest(key, keys)}; "
                f"options: {', '.join(keys)}"
            )
        try:
            kind = tuple if field.many else field.kind
            options[key] = configs.parse(text, defaults.get(key), kind)
        except ValueError as error:
            raise ConfigError(f"--{section}.{key}={text}: {error}") from None
        if why := field.problem(options[key]):
            raise ConfigError(f"--{section}.{key}={text}: expected {why}")
    return options
