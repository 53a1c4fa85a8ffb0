"""Passes through a backbone's stack as parity tests want them: with the input of every layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import jax
import pytest
from jaxtyping import Array, Key

from jvae.api import Side
from jvae.nn import t5
from jvae.nn.attention import MaskSpec, segments
from jvae.nn.backbone import Stack
from jvae.nn.points import UNTOUCHED, Points
from jvae.nn.t5_layer import T5Config


def layer_input(x_btd: Array, y_btd: Array, _: Any) -> Array:
    """A `read` that keeps what a layer reads."""
    del y_btd
    return x_btd


def layer_output(x_btd: Array, y_btd: Array, _: Any) -> Array:
    """A `read` that keeps what a layer gives."""
    del x_btd
    return y_btd


def forced(
    stack: Stack,
    params: Any,
    x_btd: Array,
    side: Side,
    points: Points = UNTOUCHED,
    drop: Any = None,
) -> tuple[Array, Array]:
    """Teacher-forced states of packed rows, and the input of every layer."""
    mask_spec = segments(side, causal=True)
    return stack.rows(params, x_btd, mask_spec, points, drop, read=layer_input)


def encoded(
    stack: Stack, params: Any, side: Side, drop: Any = None, mask_spec: MaskSpec | None = None
) -> tuple[Array, Array]:
    """States of a side read in both directions, and the input of every layer."""
    x_btd = stack.embed(params, side.token_bt, side.position_bt, side.type_bt)
    mask_spec = segments(side, causal=False) if mask_spec is None else mask_spec
    return stack.rows(params, x_btd, mask_spec, UNTOUCHED, drop, read=layer_input)


def t5_pair(encoder: T5Config, decoder: T5Config, key: Key[Array, ""]) -> Any:
    """Boxed parameters of an encoder and a decoder around one embedding."""
    embed_key, encoder_key, decoder_key, head_key = jax.random.split(key, 4)
    return t5.init_embed(encoder, embed_key) | {
        "encoder": t5.init_body(encoder, encoder_key),
        "decoder": t5.init_body(decoder, decoder_key) | t5.init_head(decoder, head_key),
    }


def t5_own(params: Any, side: str) -> Any:
    """The parameters of one stack of a pair."""
    return params[side] | {"embed": params["embed"]}


class Pass(NamedTuple):
    """One call of `rows`: what it got, and what it gave."""

    params: Any
    points: Points
    hidden_btd: Array
    inputs_lbtd: Array


@contextmanager
def recorded(module: ModuleType) -> Iterator[list[Pass]]:
    """The causal passes through stacks that are built, and run, inside of the context.

    module: whose `rows` they are made of, `jvae.nn.transformer` or `jvae.nn.t5`.
    """
    whole, passes = module.rows, []

    def rows(
        spec, params, x_btd, mask_spec, points=UNTOUCHED, drop=None, *, read=None, read_l=None
    ):
        if not mask_spec.causal:
            return whole(spec, params, x_btd, mask_spec, points, drop, read=read, read_l=read_l)
        hidden, inputs = whole(spec, params, x_btd, mask_spec, points, drop, read=layer_input)
        passes.append(Pass(params, points, hidden, inputs))
        return hidden, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "rows", rows)
        yield passes
