"""Parts of models that can start from pretrained weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvae.pretrained.backbones import Backbone
from jvae.pretrained.layouts import LAYOUTS
from jvae.pretrained.names import NameTable, Vocab


class PretrainedPart(NamedTuple):
    """A pretrained part of a model.

    key: of `config.init`. role: whose tokenizer its embedding belongs to. sections: of
    `config.model`, which must have its sizes. table: its names for a vocabulary.
    """

    key: str
    role: str
    sections: tuple[str, ...]
    backbone: Backbone
    table: Callable[[Vocab], NameTable]


def one_embedding(model: Any) -> bool:
    """Whether one token embedding serves both sides: of one stack, or of two that share it."""
    return "encoder" not in model or bool(model.get("share_embedding"))


def stack_part(section: Any, role: str, pooler: str | None = None) -> tuple[PretrainedPart, ...]:
    """The part that is one stack, under its role; none where its backbone has no published files.

    Args:
      section: of `config.model`, named like the role. pooler: our path of a pooler of the first
        token, for backbones whose files have one.
    """
    if section.backbone not in LAYOUTS:
        return ()
    layout = LAYOUTS[section.backbone]
    pooler = pooler if layout.pooler else None

    def table(vocab: Vocab) -> NameTable:
        return layout.table(section, vocab, role, role, pooler)

    return (PretrainedPart(role, role, (role,), layout.files, table),)


def pair_part(section: Any, cross: bool) -> tuple[PretrainedPart, ...]:
    """The part that is both stacks around one embedding, loaded as the decoder."""
    if section.backbone not in LAYOUTS:
        return ()
    layout = LAYOUTS[section.backbone]
    if (pair := layout.pair) is None:
        return ()

    def table(vocab: Vocab) -> NameTable:
        return pair(section, vocab, cross)

    part = PretrainedPart("decoder", "decoder", ("decoder",), layout.files, table)
    return (part,)


def both_part(section: Any, cross: bool) -> tuple[PretrainedPart, ...]:
    """The part that is an encoder and a decoder that share their token embedding, loaded as the
    decoder.
    """
    if section.backbone not in LAYOUTS:
        return ()
    layout = LAYOUTS[section.backbone]
    if (both := layout.both) is None:
        return ()
    sections = ("decoder", "encoder")
    return (PretrainedPart("decoder", "decoder", sections, layout.files, lambda v: both(v, cross)),)
