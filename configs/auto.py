"""Your own text: sizes and schedules that follow from the corpus.

    python -m jvae.main --config=auto --config.data.train=my.txt --workdir=runs/mine

What was chosen, and why, is logged before anything is trained; a flag of yours goes before any
choice. The rules are in `jvae.runs.own_text`.
"""

from ml_collections import ConfigDict

from jvae.config import preset

from . import optimus

PRESETS = ("tiny",)


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config that the choices start from; `jvae.runs.start.configure` makes them."""
    preset(arg, PRESETS)
    c = optimus.get_config("tiny")
    c.name = "auto"
    return c
