"""Decoding loops with caches that are extended in stages.

    max_length 128    room 32 -> 64 -> 128    most sentences end in the first stage

A step reads its whole cache, filled or not. With a cache of capacity `max_length` every sentence
would therefore cost as much per step as the longest allowed one.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Bool

from jvae.api import Generator
from jvae.decode.sampling import DecodeConfig


def rooms(gen: Generator, cfg: DecodeConfig) -> list[int]:
    """Cache capacity of each stage, in new tokens.

    It doubles from stage to stage; the last stage has capacity `max_length`.
    """
    capacities, room = [], cfg.room
    while gen.grow is not None and 1.5 * room <= cfg.max_length:
        capacities.append(room)
        room *= 2
    return [*capacities, cfg.max_length]


def run(
    gen: Generator,
    cfg: DecodeConfig,
    goes_on: Callable[[Any], Bool[Array, ""]],
    body_for: Callable[[Any], Callable[[Any], Any]],
    carry: Any,
) -> Any:
    """Runs carry = body(carry) while `goes_on(carry)`, for at most `cfg.max_length` tokens.

    Args:
      body_for: makes the body of a stage from its first carry, outside the loop.
      carry: a named tuple with `emitted`, the number of new tokens so far, and `state`, with the
        cache capacity of the first stage.
    """
    ends = rooms(gen, cfg)
    for stage, end in enumerate(ends):
        if stage > 0:
            assert gen.grow is not None  # otherwise there is only one stage
            carry = carry._replace(state=gen.grow(carry.state, end - ends[stage - 1]))
        carry = jax.lax.while_loop(
            lambda c, end=end: (c.emitted < end) & goes_on(c), body_for(carry), carry
        )
    return carry
