"""Named points of a stack at which something outside of it may act.

A stack that is asked to run gets a `Points`; what is None is left alone. `jvae.nn.backbone` says
which stacks have which points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

Read = Callable[[Array, Array, Any], Any]


class LatentKv(NamedTuple):
    """Latent slots of every layer, M per row or example; G key and value heads, never rotated."""

    key_lbmgh: Float[Array, "l b m g h"]
    value_lbmgh: Float[Array, "l b m g h"]


class CrossKv(NamedTuple):
    """Keys and values that every decoder layer makes of the states it attends to."""

    key_lbsgh: Float[Array, "l b s g h"]
    value_lbsgh: Float[Array, "l b s g h"]


class Points(NamedTuple):
    """What acts where. Fields that end in `_l` have the layers in front; a layer gets its slice.

    slots, owner_m: extra keys and values, and the segment that sees each; an owner of None means
      that every row is one example, which sees all of its slots.
    value: (value_btgh, slice of `value_l`) -> value_btgh, before the values are cached.
    tap: (name, state_btd, slice of `tap_l`) -> what joins the residual stream there, or None; for
      the names see `jvae.nn.block.TAPS`.
    cross, cross_owner_bs: keys and values of cross-attention, and the segment that sees each; where
      every row is one example, that is segment 1, or all of them for an owner of None. Without
      them the cross-attention sub-layers are skipped.
    lead: positions in front of a text's first token, whose own positions count from 0.
    always: so many positions from 0 on are seen at any distance by layers with a window.
    """

    slots: LatentKv | None = None
    owner_m: Int[np.ndarray, "m"] | None = None
    value: Callable[[Array, Any], Array] | None = None
    value_l: Any = None
    tap: Callable[[str, Array, Any], Array | None] | None = None
    tap_l: Any = None
    cross: CrossKv | None = None
    cross_owner_bs: Int[Array | np.ndarray, "#b s"] | None = None
    lead: int = 0
    always: int = 0

    @property
    def slot_count(self) -> int:
        """Slots of a row."""
        return 0 if self.slots is None else self.slots.key_lbmgh.shape[2]

    def tap_of(self, inputs: Any) -> Callable[[str, Array], Array | None] | None:
        """The tap of a layer whose slice of `tap_l` is `inputs`; None without a tap."""
        tap = self.tap
        return None if tap is None else lambda name, state: tap(name, state, inputs)


UNTOUCHED = Points()
