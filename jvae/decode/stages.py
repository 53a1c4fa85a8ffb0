"""Loops of decoding whose caches grow with the text.

    max_length 128    room 32 -> 64 -> 128    most sentences end in the first stage

A step reads its whole cache, filled or not, so a cache of `max_length` places would make every
sentence as dear as the longest one that is allowed.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Bool

from jvae.api import Generator
from jvae.decode.sampling import DecodeConfig


def rooms(gen: Generator, cfg: DecodeConfig) -> list[int]:
    """New tokens that there is room for in every stage: doubled until a last one of more than half
    as many again takes it to `max_length`.
    """
    found, room = [], cfg.room
    while gen.grow is not None and 1.5 * room <= cfg.max_length:
        found.append(room)
        room *= 2
    return [*found, cfg.max_length]


def run(
    gen: Generator,
    cfg: DecodeConfig,
    goes_on: Callable[[Any], Bool[Array, ""]],
    body: Callable[[Any], Any],
    carry: Any,
) -> Any:
    """While `goes_on(carry)`, and at most `cfg.max_length` tokens: carry = body(carry).

    Args:
      carry: a named tuple with `emitted`, new tokens so far, and `state`, which has room for those
        of the first stage.
    """
    ends = rooms(gen, cfg)
    for stage, end in enumerate(ends):
        if stage > 0:
            assert gen.grow is not None  # else there is one stage
            carry = carry._replace(state=gen.grow(carry.state, end - ends[stage - 1]))
        carry = jax.lax.while_loop(lambda c, end=end: (c.emitted < end) & goes_on(c), body, carry)
    return carry
