"""RoBERTa: BERT with positions that begin after the padding index, and one token type.

Source: Liu et al. 2019, arXiv 1907.11692.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from jvae.backbones import bert, tiny
from jvae.nn import transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.config import TransformerConfig
from jvae.pretrained import bert as bert_weights
from jvae.pretrained.backbones import HEADS
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import NameTable, Vocab

# Positions begin after the id of the padding token, which leaves two rows of their table unused;
# config.json counts these rows.
PAD = 1
OFFSET = PAD + 1


@dataclass(frozen=True)
class RobertaConfig(TransformerConfig):
    """Sizes of a RoBERTa; `positions` counts only positions that tokens can have."""


def stack(config: RobertaConfig, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    del own_head  # an encoder has no output head
    spec = replace(bert.spec(config), position_offset=OFFSET, types=1)
    return transformer.stack(config, spec, config.positions, decodes=False)


def _tiny(vocab: int, **changes: Any) -> RobertaConfig:
    return RobertaConfig(**tiny.transformer(vocab, **changes))


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = bert_weights.sizes_of(config, types=1)
    if sizes["positions"] <= OFFSET:
        raise ValueError(
            f"max_position_embeddings is {sizes['positions']}; expected more than {OFFSET}"
        )
    return sizes | dict(positions=sizes["positions"] - OFFSET)


def _describe(ours: Mapping[str, Any]) -> dict[str, Any]:
    return bert_weights.BACKBONE.describe(ours) | dict(
        architectures=["RobertaModel"],
        model_type="roberta",
        max_position_embeddings=ours["positions"] + OFFSET,
        type_vocab_size=1,
    )


FILES = replace(
    bert_weights.BACKBONE,
    name="roberta",
    prefix="roberta.",
    renamed=(),
    ignored=(*HEADS, r"embeddings\.position_ids", r"lm_head\..*"),
    sizes=_sizes,
    describe=_describe,
    fixed={"pad_token_id": PAD},
)


def table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    """Tensor names of one stack in Hugging Face files."""
    del config, role  # one layout for all
    names = bert_weights.table(vocab, path, pooler)
    ignored = FILES.ignored if pooler else (*FILES.ignored, bert_weights.POOLER)
    return NameTable(names.rules, ignored)


BACKBONES.register("roberta")(BackboneKind(RobertaConfig, transformer.ENCODER, stack, _tiny))
LAYOUTS.register("roberta")(Layout(FILES, table, pooler=True))
