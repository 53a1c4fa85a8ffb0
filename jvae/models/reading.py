"""Runs an encoder over packed rows."""

from typing import Any

from jaxtyping import Array, Float, Key

from jvae.api import Params, Side
from jvae.nn.attention import MaskSpec, segments
from jvae.nn.backbone import Stack
from jvae.nn.points import UNTOUCHED, Points, Read


def states(
    stack: Stack,
    params: Params,
    side: Side,
    drop: Key[Array, ""] | None = None,
    *,
    soft_btd: Float[Array, "b t w"] | None = None,
    mask_spec: MaskSpec | None = None,
    points: Points = UNTOUCHED,
    read: Read | None = None,
    read_l: Any = None,
) -> tuple[Float[Array, "b t d"], Any]:
    """Bidirectional states after the last layer, and the outputs of `read` for every layer.

    Args:
      soft_btd: input vectors of layer 0 that replace embedded tokens; states may differ in width.
      mask_spec: attention mask; None lets tokens attend within their segment.
      points, read, read_l: see `jvae.nn.transformer.rows`.
    """
    if soft_btd is None:
        x_btd = stack.embed(params, side.token_bt, side.position_bt, side.type_bt)
    else:
        x_btd = soft_btd.astype(stack.config.dtype)
    mask_spec = segments(side, causal=False) if mask_spec is None else mask_spec
    return stack.rows(params, x_btd, mask_spec, points, drop, read=read, read_l=read_l)
