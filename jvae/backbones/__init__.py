"""The backbones of jvae. A file holds one: its config, its stack, its names in pretrained files and
its registrations; docs/extending.md adds another from outside the package.
"""

from jvae.backbones import (
    bart,
    bert,
    distilbert,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    lstm,
    mistral,
    modernbert,
    opt,
    qwen2,
    qwen3,
    roberta,
    t5,
)
from jvae.nn.backbone import BACKBONES
from jvae.pretrained.layouts import LAYOUTS

__all__ = [
    "BACKBONES",
    "LAYOUTS",
    "bart",
    "bert",
    "distilbert",
    "gemma",
    "gpt2",
    "gpt_neox",
    "llama",
    "lstm",
    "mistral",
    "modernbert",
    "opt",
    "qwen2",
    "qwen3",
    "roberta",
    "t5",
]
