"""FLOPs and operand bytes of the matrix products in a traced program, without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(traced: ClosedJaxpr | Jaxpr, turns: int = 1) -> float:
    """Total FLOPs of all matrix products of a program (2 x M x N x K each), over all devices.

    A scan counts once per iteration; a conditional counts as its most expensive branch.

    Args:
      turns: iterations assumed for while loops, whose trip count is unknown before running.
    """

    def flops(equation: Any) -> float:
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        result = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * result * math.prod(shape[i] for i in contracted)

    return _over_products(traced, flops, turns)


def matmul_bytes(traced: ClosedJaxpr | Jaxpr) -> float:
    """Bytes of the operands of all matrix products, counted as in `matmul_flops`.

    This is the minimum a program reads if its operands are too large to stay in a cache.
    """

    def size(equation: Any) -> float:
        return float(sum(_bytes(one.aval) for one in equation.invars))

    return _over_products(traced, size, 1)


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _over_products(traced: ClosedJaxpr | Jaxpr, cost: Callable[[Any], float], turns: int) -> float:
    jaxpr = traced.jaxpr if isinstance(traced, ClosedJaxpr) else traced
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += cost(equation)
        inner = [_over_products(part, cost, turns) for part in _parts(equation)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            times = {"scan": equation.params.get("length"), "while": turns}
            if equation.primitive.name == "shard_map":  # its inner program is per device
                times["shard_map"] = equation.params["mesh"].size
            total += times.get(equation.primitive.name, 1) * sum(inner)
    return total


def _parts(equation: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs nested in an equation."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    )
    return (part for part in leaves if isinstance(part, ClosedJaxpr | Jaxpr))
