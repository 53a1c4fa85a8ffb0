"""Parts of models that can start from pretrained weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvae.pretrained import gpt2
from jvae.pretrained.backbones import Backbone
from jvae.pretrained.names import NameTable, Vocab


class PretrainedPart(NamedTuple):
    """A pretrained part of a model family.

    key: of `config.init`. role: whose tokenizer its embedding belongs to. sections: of
    `config.model`, which must have its sizes. table: its names, given `config.model` and the
    vocabularies. std: of new embedding rows.
    """

    key: str
    role: str
    sections: tuple[str, ...]
    backbone: Backbone
    table: Callable[[Any, Vocab], NameTable]
    std: float = 0.02


GPT2_DECODER = PretrainedPart(
    "decoder", "decoder", ("decoder",), gpt2.BACKBONE, lambda _, v: gpt2.table(v, "decoder")
)
