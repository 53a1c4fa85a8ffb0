"""Named points of a stack at which a model can inject latents or read states.

Every pass through a stack takes a `Points`; fields that are None have no effect. See
`jvae.nn.backbone` for the points that each stack supports.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

Read = Callable[[Array, Array, Any], Any]


class LatentKv(NamedTuple):
    """Latent slots of every layer: M per row or example, G key and value heads, never rotated."""

    key_lbmgh: Float[Array, "l b m g h"]
    value_lbmgh: Float[Array, "l b m g h"]


class CrossKv(NamedTuple):
    """Cross-attention keys and values of every decoder layer."""

    key_lbsgh: Float[Array, "l b s g h"]
    value_lbsgh: Float[Array, "l b s g h"]


class Points(NamedTuple):
    """Injections into a stack. Fields that end in `_l` have layers as leading axis; each layer
    gets its slice.

    slots, owner_m: extra keys and values, and the segment that each is visible to; an owner of None
      means that every row is one example, which attends to all of its slots.
    value: (value_btgh, slice of `value_l`) -> value_btgh, applied before the values are cached.
    tap: (name, state_btd, slice of `tap_l`) -> addend to the residual stream there, or None; for
      the names see `jvae.nn.block.TAPS`.
    cross, cross_owner_bs: keys and values of cross-attention, and the segment that each is visible
      to. If every row is one example, that segment is 1; an owner of None makes all of them
      visible. Without `cross`, the cross-attention sub-layers are skipped.
    lead: number of positions in front of a text's first token; token positions still count from 0.
    always: number of leading positions that are visible at any distance in layers with a window.
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
        """Number of slots per row."""
        return 0 if self.slots is None else self.slots.key_lbmgh.shape[2]

    def tap_of(self, inputs: Any) -> Callable[[str, Array], Array | None] | None:
        """The tap of a layer whose slice of `tap_l` is `inputs`; None without a tap."""
        tap = self.tap
        return None if tap is None else lambda name, state: tap(name, state, inputs)


UNTOUCHED = Points()
