"""Parts of models that can be initialised from pretrained weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvae.pretrained.backbones import Backbone
from jvae.pretrained.layouts import LAYOUTS
from jvae.pretrained.names import NameTable, Vocab


class PretrainedPart(NamedTuple):
    """A pretrained part of a model.

    key: its key in `config.init`.
    role: the role whose tokenizer its embedding belongs to.
    sections: sections of `config.model` that must match its sizes.
    table: returns its names for a vocabulary.
    """

    key: str
    role: str
    sections: tuple[str, ...]
    backbone: Backbone
    table: Callable[[Vocab], NameTable]


def one_embedding(model: Any) -> bool:
    """Whether both sides use one token embedding, from a single stack or shared by two."""
    return "encoder" not in model or bool(model.get("share_embedding"))


def stack_part(section: Any, role: str, pooler: str | None = None) -> tuple[PretrainedPart, ...]:
    """The part for one stack, named by its role; empty if its backbone has no published files.

    Args:
      section: the section of `config.model` with the same name as the role.
      pooler: our path of a pooler of the first token, for backbones whose files have one.
    """
    if section.backbone not in LAYOUTS:
        return ()
    layout = LAYOUTS[section.backbone]
    pooler = pooler if layout.pooler else None

    def table(vocab: Vocab) -> NameTable:
        return layout.table(section, vocab, role, role, pooler)

    return (PretrainedPart(role, role, (role,), layout.files, table),)


def pair_part(section: Any, cross: bool) -> tuple[PretrainedPart, ...]:
    """The part for two stacks with one embedding, loaded as the decoder."""
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
    """The part for an encoder and a decoder that share a token embedding, loaded as the decoder."""
    if section.backbone not in LAYOUTS:
        return ()
    layout = LAYOUTS[section.backbone]
    if (both := layout.both) is None:
        return ()

    def table(vocab: Vocab) -> NameTable:
        return both(section, vocab, cross)

    sections = ("decoder", "encoder")
    return (PretrainedPart("decoder", "decoder", sections, layout.files, table),)
