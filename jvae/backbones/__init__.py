"""The backbones of jvae.

Each file defines one backbone: config, stack, names in pretrained files, and registrations. See
docs/extending.md for adding one outside the package.
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
