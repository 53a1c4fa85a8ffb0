"""How the pretrained files of a backbone name its tensors, and the registry of all.

The key is the name of the backbone in `jvae.nn.backbone.BACKBONES`.
"""

from collections.abc import Callable
from typing import NamedTuple

from jvae.pretrained.backbones import Backbone
from jvae.pretrained.names import NameTable
from jvae.registry import Registry


class Layout(NamedTuple):
    """The layout of one backbone in Hugging Face's files.

    files: its family there: prefixes, sizes from config.json and back.
    table(section, vocab, path, role, pooler) -> NameTable
      Names of one stack. section: its section of the config. path: ours of the stack; role:
      "encoder" or "decoder". pooler: our path of a pooler, None for none.
    pair(section, vocab, cross) -> NameTable
      Names of an encoder and a decoder that share one embedding, under {embed, encoder, decoder};
      None for a backbone that is published alone. cross: whether ours has cross-attention.
    both(vocab, cross) -> NameTable
      Names of an encoder and a decoder that share the token embedding alone, under {encoder,
      decoder}; None where that is not how they are published.
    pooler: whether its files may hold a pooler of the first token.
    """

    files: Backbone
    table: Callable[..., NameTable]
    pair: Callable[..., NameTable] | None = None
    both: Callable[..., NameTable] | None = None
    pooler: bool = False


LAYOUTS: Registry[Layout] = Registry("pretrained layout", "model.decoder.backbone")
