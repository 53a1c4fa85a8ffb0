"""The registry of tensor names in the pretrained files of backbones.

Keys are the names of backbones in `jvae.nn.backbone.BACKBONES`.
"""

from typing import Any, NamedTuple, Protocol

from jvae.pretrained.backbones import Backbone
from jvae.pretrained.names import NameTable, Vocab
from jvae.registry import Registry


class StackTable(Protocol):
    """Returns the names of one stack.

    Args:
      section: its section of the config.
      path: our path of the stack.
      role: "encoder" or "decoder".
      pooler: our path of a pooler; None for none.
    """

    def __call__(
        self, section: Any, vocab: Vocab, path: str, role: str, pooler: str | None, /
    ) -> NameTable: ...


class PairTable(Protocol):
    """Names of an encoder and a decoder that share one embedding, under {embed, encoder, decoder}.

    Args:
      section: their section of the config.
      cross: whether ours has cross-attention.
    """

    def __call__(self, section: Any, vocab: Vocab, cross: bool, /) -> NameTable: ...


class BothTable(Protocol):
    """Names of an encoder and a decoder that share the token embedding alone, which is the
    decoder's, under {encoder, decoder}.

    Args:
      cross: whether ours has cross-attention.
    """

    def __call__(self, vocab: Vocab, cross: bool, /) -> NameTable: ...


class Layout(NamedTuple):
    """The layout of one backbone in Hugging Face's files.

    files: its family there: prefixes, sizes from config.json and back.
    pair: None for a backbone that is published alone.
    both: None where an encoder and a decoder do not share the token embedding alone.
    pooler: whether its files may hold a pooler of the first token.
    """

    files: Backbone
    table: StackTable
    pair: PairTable | None = None
    both: BothTable | None = None
    pooler: bool = False


LAYOUTS: Registry[Layout] = Registry("pretrained layout", "model.decoder.backbone")
