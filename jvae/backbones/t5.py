"""T5 v1.0 and v1.1: relative positions, unscaled attention, no biases, cross-attention.

Source: Raffel et al. 2020 and Shazeer 2020; see `jvae.nn.t5`. A stack is an encoder or a decoder; a
model with both decides what they share.
"""

import dataclasses
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from jvae.nn import t5, transformer
from jvae.nn.backbone import BACKBONES, BackboneKind, Stack
from jvae.nn.t5_layer import T5Config
from jvae.pretrained import t5 as weights
from jvae.pretrained.layouts import LAYOUTS, Layout
from jvae.pretrained.names import NameTable, Vocab

UNBOUNDED = 2**31 - 1  # relative positions impose no maximum length
ABILITIES = transformer.DECODER | {"cross"}


def stack(config: T5Config, own_head: bool = False) -> Stack:
    """Builds the functions of a stack; see `jvae.nn.backbone.Stack`."""
    c = dataclasses.replace(config, tied=False) if own_head else config
    return Stack(
        config=c,
        features=c.width,
        longest=UNBOUNDED,
        init=partial(t5.init, c),
        init_embed=partial(t5.init_embed, c),
        init_body=partial(t5.init_body, c),
        init_head=partial(t5.init_head, c),
        embed=partial(t5.embed, c),
        place=lambda params, x, position: x,
        rows=partial(t5.rows, c),
        prefill=partial(t5.prefill, c),
        step=partial(t5.step, c),
        logits=partial(t5.logits, c),
        token_log_prob=partial(t5.token_log_prob, c),
        cross=partial(t5.cross_kv, c),
        with_features=partial(t5.with_features, c),
    )


def _tiny(vocab: int, **changes: Any) -> T5Config:
    sizes: dict[str, Any] = dict(layers=2, width=16, heads=2, head=6, mlp=24, vocab=vocab)
    sizes |= dict(buckets=8, max_distance=16, vocab_multiple=8, xent_chunk=10)
    return T5Config(**(sizes | changes))


def _table(config: ConfigDict, vocab: Vocab, path: str, role: str, pooler: str | None) -> NameTable:
    del pooler  # T5 has none
    shape = dict(gated=config.gated, tied=config.tied, cross=config.get("cross", False))
    return weights.stack_table(vocab, path, role, **shape)


def _pair(config: ConfigDict, vocab: Vocab, cross: bool) -> NameTable:
    return weights.table(vocab, gated=config.gated, tied=config.tied, cross=cross)


def _both(config: ConfigDict, vocab: Vocab, cross: bool) -> NameTable:
    """The names of a pair whose token embedding is in the decoder."""
    pair = _pair(config, vocab, cross)
    embedding, *rules = pair.rules
    moved = dataclasses.replace(embedding, path=f"decoder/{embedding.path}")
    return dataclasses.replace(pair, rules=(moved, *rules))


BACKBONES.register("t5")(BackboneKind(T5Config, ABILITIES, stack, _tiny))
LAYOUTS.register("t5")(Layout(weights.BACKBONE, _table, _pair, _both))
