"""FLOPs and operand bytes of the matrix products in a traced program, without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(traced: ClosedJaxpr | Jaxpr, turns: int = 1) -> float:
    """Total FLOPs of all matrix products of a program (2 x M x N x K each), over all devices.

    A scan counts once per iteration and a Pallas kernel once per cell of its grid; a conditional
    counts as its most expensive branch. cuDNN's attention counts as the products it stands for:
    two forwards, and five backwards, as it recomputes the logits.

    Args:
      turns: iterations assumed for while loops, whose trip count is unknown before running.
    """

    def flops(equation: Any) -> float:
        if (products := _ATTENTION.get(equation.primitive.name)) is not None:
            query, key = (variable.aval.shape for variable in equation.invars[:2])  # (B, T, N, H)
            return products * 2.0 * math.prod(query) * key[1]
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


def declared_bytes(traced: ClosedJaxpr | Jaxpr) -> dict[str, int]:
    """Bytes that each Pallas kernel with a cost estimate moves per call, by the kernel's name."""
    jaxpr = traced.jaxpr if isinstance(traced, ClosedJaxpr) else traced
    estimates: dict[str, int] = {}
    for equation in jaxpr.eqns:
        estimate = equation.params.get("cost_estimate")
        if equation.primitive.name == "pallas_call" and estimate is not None:
            estimates[equation.params["name"]] = estimate.bytes_accessed
        for part in _parts(equation):
            estimates |= declared_bytes(part)
    return estimates


# Products of cuDNN's fused attention, by primitive.
_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _over_products(traced: ClosedJaxpr | Jaxpr, cost: Callable[[Any], float], turns: int) -> float:
    jaxpr = traced.jaxpr if isinstance(traced, ClosedJaxpr) else traced
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general" or name in _ATTENTION:
            total += cost(equation)
        inner = [_over_products(part, cost, turns) for part in _parts(equation)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            times = {"scan": equation.params.get("length"), "while": turns}
            if name == "shard_map":  # its inner program is per device
                times[name] = equation.params["mesh"].size
            if name == "pallas_call":
                times[name] = math.prod(equation.params["grid_mapping"].grid)
            total += times.get(name, 1) * sum(inner)
    return total


def _parts(equation: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs nested in an equation."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    )
    return (part for part in leaves if isinstance(part, ClosedJaxpr | Jaxpr))
