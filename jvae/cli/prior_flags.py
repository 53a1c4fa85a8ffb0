"""The flags `--prior.KEY=VALUE`: what to fit, or how a fitted prior is used."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.evals.prior_fit import PriorRequest
from jvae.fields import Field, defaults_of, fields_of
from jvae.fitted import FITTED, Fitted


def request(values: Mapping[str, str], name: str) -> tuple[PriorRequest, Any]:
    """What to fit, and the options of its kind.

    Args:
      name: that of the flag `--prior`, which names the prior as `--prior.name` does.
    Raises: ConfigError for a missing or unknown kind, an unknown key, a wrong value.
    """
    if not values.get("kind"):
        raise ConfigError(f"what to fit? Add --prior.kind={'|'.join(FITTED)}")
    options = FITTED[values["kind"]].options
    own = fields_of(PriorRequest)
    parts = {key: value for key, value in values.items() if key in own}
    if name:
        parts.setdefault("name", name)
    rest = {key: value for key, value in values.items() if key not in own}
    return _filled(PriorRequest, parts, ()), _filled(options, rest, tuple(own))


def using(fitted: Fitted, values: Mapping[str, str]) -> Fitted:
    """A prior with the options of use that flags set.

    Raises: ConfigError for options that the fit has decided, or wrong values.
    """
    changed = _values(type(fitted.options), values, ())
    return fitted.using(**changed)


def _values(cls: type, values: Mapping[str, str], others: Sequence[str]) -> dict[str, Any]:
    fields, defaults, parsed = fields_of(cls), defaults_of(cls), {}
    for key, text in values.items():
        field = fields.get(key)
        if not isinstance(field, Field) or field.kind is None:
            known = [*others, *fields]
            raise ConfigError(
                f"--prior.{key}: no such option{configs.nearest(key, known)}; "
                f"options: {', '.join(known)}"
            )
        try:
            parsed[key] = configs.parse(text, defaults.get(key), field.kind)
        except ValueError as error:
            raise ConfigError(f"--prior.{key}={text}: {error}") from None
        if why := field.problem(parsed[key]):
            raise ConfigError(f"--prior.{key}={text}: expected {why}")
    return parsed


def _filled(cls: type, values: Mapping[str, str], others: Sequence[str]) -> Any:
    try:
        return dataclasses.replace(cls(), **_values(cls, values, others))
    except ValueError as error:
        raise ConfigError(f"--prior: {error}") from None
