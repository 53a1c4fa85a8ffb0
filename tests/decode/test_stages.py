"""Room for new tokens, stage by stage."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from jvae.decode import DecodeConfig, stages
from jvae.errors import ConfigError


class Carry(NamedTuple):
    emitted: Any
    state: Any


@pytest.mark.parametrize(
    ("length", "want"),
    [(20, [20]), (47, [47]), (48, [32, 48]), (75, [32, 75]), (128, [32, 64, 128])],
)
def test_rooms_double_up_to_the_maximum(toy, length, want):
    gen, _ = toy.make_generator()
    growing = gen._replace(grow=lambda state, more: state)
    assert stages.rooms(growing, DecodeConfig(max_length=length)) == want
    assert stages.rooms(gen, DecodeConfig(max_length=length)) == [length]


def test_growth_is_by_what_is_missing_and_ends_early(toy):
    grown = []

    def grow(state, more):
        grown.append(more)
        return state + more

    gen = toy.make_generator()[0]._replace(grow=grow)

    def run(last):
        carry = Carry(jnp.int32(1), jnp.int32(0))
        body = lambda c: c._replace(emitted=c.emitted + 1)  # noqa: E731
        cfg = DecodeConfig(max_length=96)
        return stages.run(gen, cfg, lambda c: c.emitted < last, lambda carry: body, carry)

    assert int(run(200).emitted) == 96
    assert grown == [32, 32]
    assert int(run(40).emitted) == 40


def test_no_room():
    with pytest.raises(ConfigError, match=r"decode.room is 0; .* at least 1"):
        DecodeConfig(room=0)
