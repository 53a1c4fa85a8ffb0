"""A backbone from outside the package, under every injection, and a config that uses it.

The backbone is Llama, word for word the file of the package under another name: it does nothing
that a file of one's own could not.

    python -m jvae.main --config=tests/outside/backbone.py:fusion
"""

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jvae import config as configs
from jvae.backbones import llama
from jvae.models import FAMILIES
from jvae.nn.backbone import BACKBONES

NAME = "outside_llama"


def _load() -> None:
    file = Path(str(llama.__file__))
    text = file.read_text(encoding="utf-8").replace('register("llama")', f'register("{NAME}")')
    module = types.ModuleType(NAME)
    module.__file__ = str(Path(__file__).with_name(f"{NAME}.py"))
    sys.modules[NAME] = module  # where dataclasses look for the types of their fields
    exec(compile(text, module.__file__, "exec"), module.__dict__)


if NAME not in BACKBONES:
    _load()
# Family and its choices, by the injection that they make of it.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "memory": ("optimus", dict(use_embedding=False)),
    "embedding": ("optimus", dict(use_memory=False)),
    "tokens": ("optimus", dict(use_memory=False, use_embedding=False, tokens=2)),
    "slots": ("adavae", dict(prefix=2, use_memory=True, use_output=True, use_adapters=True)),
    "fusion": ("della", dict()),
    "chain": ("sri_transformer", dict()),
    "none": ("lm", dict()),
}


def _register(way: str, family: str, choices: dict[str, Any]) -> None:
    inside = FAMILIES[family]

    def tiny(vocab: Any, **stack: Any) -> Any:
        decoder = BACKBONES[NAME].tiny(vocab["dec"], **stack)
        return dataclasses.replace(inside.tiny(vocab, **stack), decoder=decoder, **choices)

    def build(config: Any) -> Any:
        return inside.build(config)

    FAMILIES.register(f"outside_{way}")(
        inside._replace(build=build, tiny=tiny, preset="", original=None)
    )


for _way, (_family, _choices) in WAYS.items():
    _register(_way, _family, _choices)


def get_config(arg: str) -> ConfigDict:
    """The tiny preset of a way's family with the backbone as its decoder."""
    way = "tokens" if arg == "tiny" else arg
    family, choices = WAYS[way]
    c = configs.load(family.replace("sri_", "sri:") if family[:3] == "sri" else family).unlock()
    c.name = f"outside-{way}"
    c.model.family = f"outside_{way}"
    c.model.update(choices)
    sizes = dict(layers=2, width=128, heads=6, kv_heads=2, head=24, mlp=256, vocab=0, positions=64)
    c.model.decoder = ConfigDict(dict(backbone=NAME, **sizes, tied=True, init_std=0.06))
    return c
