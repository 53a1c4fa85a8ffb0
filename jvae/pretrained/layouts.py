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
      section: the config section of the stack.
      path: path of the stack in our parameters.
      role: "encoder" or "decoder".
      pooler: path of a pooler in our parameters; None for none.
    """

    def __call__(
        self, section: Any, vocab: Vocab, path: str, role: str, pooler: str | None, /
    ) -> NameTable: ...


class PairTable(Protocol):
    """Returns the names of an encoder and a decoder with one embedding.

    Our tree is {embed, encoder, decoder}.

    Args:
      section: their section of the config.
      cross: whether ours has cross-attention.
    """

    def __call__(self, section: Any, vocab: Vocab, cross: bool, /) -> NameTable: ...


class BothTable(Protocol):
    """Returns the names of an encoder and a decoder that share only the token embedding.

    Our tree is {encoder, decoder}, with the embedding in the decoder.

    Args:
      section: their section of the config.
      cross: whether ours has cross-attention.
    """

    def __call__(self, section: Any, vocab: Vocab, cross: bool, /) -> NameTable: ...


class Layout(NamedTuple):
    """The layout of one backbone in Hugging Face files.

    files: the model family: prefixes, and conversion of sizes from and to config.json.
    table: names of one stack.
    pair: names of an encoder-decoder pair with one embedding; None for a backbone without one.
    both: names of an encoder and a decoder that share only the token embedding; None for a backbone
      without such a pair.
    pooler: whether its files may have a pooler of the first token.
    """

    files: Backbone
    table: StackTable
    pair: PairTable | None = None
    both: BothTable | None = None
    pooler: bool = False


LAYOUTS: Registry[Layout] = Registry("pretrained layout", "model.decoder.backbone")
