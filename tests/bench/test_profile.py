"""Profiles: kinds of operations, shares, and a real program."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jvae.bench import profile
from jvae.errors import ConfigError


@pytest.mark.parametrize(
    "operation, kind",
    [
        ("ynn_fusion.12", "matrix products"),
        ("dot.3", "matrix products"),
        ("transpose_copy_fusion", "copies and transposes"),
        ("multiply_add_fusion.1", "elementwise, fused"),
        ("reduce.4", "reductions"),
        ("all-reduce.1", "collectives"),
        ("all-gather.1", "collectives"),
        ("rng", "other"),
    ],
)
def test_operations_have_kinds(operation, kind):
    assert profile.kind(operation) == kind


def test_shares_add_up_and_loops_are_what_runs_in_them():
    events = [
        {"ph": "X", "dur": 30, "args": {"hlo_op": "dot.1"}},
        {"ph": "X", "dur": 10, "args": {"hlo_op": "dot.2"}},
        {"ph": "X", "dur": 10, "args": {"hlo_op": "add_fusion"}},
        {"ph": "X", "dur": 99, "args": {"hlo_op": "while.7"}},
        {"ph": "X", "dur": 99, "args": {}},
        {"ph": "M", "name": "thread_name"},
    ]
    actual = profile.operations(events)
    assert actual == Counter({"dot.1": 30, "dot.2": 10, "add_fusion": 10})
    assert profile.shares(actual) == [
        ("matrix products", 80.0, "dot"),
        ("elementwise, fused", 20.0, "add_fusion"),
    ]
    with pytest.raises(ConfigError, match="saw no operation"):
        profile.shares({})


def test_a_product_of_matrices_is_found():
    x = jnp.ones((256, 256))
    call = jax.jit(lambda x: x @ x)
    (first, *_) = profile.shares(profile.watched(lambda: call(x)))
    assert first[0] == "matrix products" and first[1] > 50


def test_mistakes_are_one_message(capsys):
    assert profile.main(["nothing"]) == 2
    assert "no case 'nothing'" in capsys.readouterr().err
