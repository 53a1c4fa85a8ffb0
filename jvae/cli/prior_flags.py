"""The flags `--prior.KEY=VALUE`: what to fit, or how to use a fitted prior."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jvae.cli.option_flags import parsed
from jvae.errors import ConfigError
from jvae.evals.prior_fit import PriorRequest
from jvae.fields import fields_of
from jvae.fitted import FITTED, Fitted

PRIOR = "prior"


def request(values: Mapping[str, str], name: str) -> tuple[PriorRequest, Any]:
    """The requested fit, and the options of its kind of prior.

    Args:
      name: value of the flag `--prior`, which names the prior as `--prior.name` does.
    Raises: ConfigError for a missing or unknown kind, an unknown key, an invalid value.
    """
    if not values.get("kind"):
        raise ConfigError(f"what to fit? Add --prior.kind={'|'.join(FITTED)}")
    options = FITTED[values["kind"]].options
    fit_fields = fields_of(PriorRequest)
    parts = {key: value for key, value in values.items() if key in fit_fields}
    if name:
        parts.setdefault("name", name)
    rest = {key: value for key, value in values.items() if key not in fit_fields}
    return _filled(PriorRequest, parts, ()), _filled(options, rest, tuple(fit_fields))


def using(fitted: Fitted, values: Mapping[str, str]) -> Fitted:
    """A prior with its usage options set from flags.

    Raises: ConfigError for options that were fixed by the fit, or invalid values.
    """
    changed = parsed(type(fitted.options), values, PRIOR)
    return fitted.using(**changed)


def _filled(cls: type, values: Mapping[str, str], extra: Sequence[str]) -> Any:
    try:
        return dataclasses.replace(cls(), **parsed(cls, values, PRIOR, extra))
    except ValueError as error:
        raise ConfigError(f"--prior: {error}") from None
