"""Your own text, with sizes and schedules chosen to suit the corpus.

    python -m jvae.main --config=auto --config.data.train=my.txt --workdir=runs/mine

The choices and their reasons are logged before training starts; your flags override them. The rules
are in `jvae.runs.own_text`.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import optimus

PRESETS = ("tiny",)


def get_config(arg: str = "tiny") -> ConfigDict:
    """The base config; `jvae.runs.start.configure` makes the choices."""
    preset(arg, PRESETS)
    c = optimus.get_config("tiny")
    c.name = "auto"
    return c
