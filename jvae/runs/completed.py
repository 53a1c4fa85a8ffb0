"""Fills in the model section of old configs with keys that were added to their family later.

The default of an added key must reproduce the earlier behaviour. Two configs therefore describe the
same model if they are equal once all keys are filled in.
"""

import dataclasses

from ml_collections import ConfigDict

from jvae import models
from jvae.errors import ConfigError
from jvae.fields import defaults_of
from jvae.latent.choice import Choice
from jvae.nn.backbone import BACKBONES, KEY


def completed(config: ConfigDict) -> ConfigDict:
    """Returns a copy whose model section has defaults for all missing keys.

    The section of an unregistered family is left unchanged.
    """
    config = ConfigDict(config.to_dict())
    try:
        family = models.family(config.model.family)
    except (ConfigError, AttributeError):
        return config
    _complete(config.model, family.config)
    for stack in config.model.values():
        if isinstance(stack, ConfigDict) and stack.get(KEY) in BACKBONES:
            _complete(stack, BACKBONES[stack[KEY]].config)
    return config


def _complete(section: ConfigDict, cls: type) -> None:
    for name, default in defaults_of(cls).items():
        if isinstance(default, Choice):
            if name not in section:
                section[name] = ConfigDict(dict(default.options) | {"kind": default.kind})
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            if name not in section:
                section[name] = ConfigDict()
            if isinstance(section[name], ConfigDict):
                _complete(section[name], type(default))
        elif default is not None and name not in section:
            section[name] = default
