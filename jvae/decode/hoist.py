"""Moves work on the parameters alone out of decoding loops.

    step(params, state, token)    w_ld -> w_ld[0] -> bfloat16 -> product with x     for every token
    hoisted                       w_d = bfloat16(w_ld[0]) once; then product with x

Every step slices its parameters out of stacks and casts them to the compute dtype. Compilers for
GPUs leave these casts in the loop, so each token would read all parameters in float32 and write
them in bfloat16. Results are bit-equal: the same operations run, only earlier.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from jvae.api import DecodeState, Params

Step = Callable[[Params, DecodeState, Array], tuple[Array, DecodeState]]
SMALL = 64  # elements; constants up to this size, such as indices, may be computed early too


class _Value(NamedTuple):
    """A constant operand; operands that are variables are ints, their numbers."""

    value: Any


_Atom = int | _Value


class _Operation(NamedTuple):
    program: Jaxpr  # of one equation, with all its variables as constants
    operands: list[_Atom]
    results: list[int]


def hoisted(
    step: Step, params: Params, state: DecodeState, token_e: Array
) -> Callable[[DecodeState, Array], tuple[Array, DecodeState]]:
    """`step` for these parameters, to be called in a loop; its work on them alone is done here.

    An operation is done here if it depends only on parameters and its result is at most as large
    as its operands. A barrier keeps compilers from moving it back.

    Args:
      state, token_e: inputs of the first step; only their shapes and dtypes matter.
    """
    traced, shapes = jax.make_jaxpr(step, return_shape=True)(params, state, token_e)
    leaves = jax.tree.leaves(params)
    inputs = list(range(len(traced.in_avals)))
    operations: list[_Operation] = []
    outputs = _flatten(traced, inputs, itertools.count(len(inputs)), operations)

    fixed = set(inputs[: len(leaves)])
    early, late = [], []
    for operation in operations:
        is_early = _is_early(operation, fixed)
        (early if is_early else late).append(operation)
        if is_early:
            fixed.update(operation.results)
    read = [atom for operation in late for atom in operation.operands] + outputs
    needed = sorted({atom for atom in read if isinstance(atom, int) and atom in fixed})
    values = dict(zip(inputs, leaves, strict=False))
    _run(early, values)
    ready = jax.lax.optimization_barrier([values[number] for number in needed])

    def run(state: DecodeState, token_e: Array) -> tuple[Array, DecodeState]:
        values = dict(zip(needed, ready, strict=True))
        values |= zip(inputs[len(leaves) :], jax.tree.leaves((state, token_e)), strict=True)
        _run(late, values)
        results = [atom.value if isinstance(atom, _Value) else values[atom] for atom in outputs]
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _flatten(
    traced: ClosedJaxpr,
    inputs: Iterable[_Atom],
    numbers: Iterator[int],
    operations: list[_Operation],
) -> list[_Atom]:
    """Appends the operations of a program, including those of nested `jit` calls; returns its
    outputs. `numbers` are those of new variables.
    """
    jaxpr = traced.jaxpr
    atoms: dict[Any, _Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
    atoms |= {var: _Value(c) for var, c in zip(jaxpr.constvars, traced.consts, strict=True)}

    def atom(var: Any) -> _Atom:
        return _Value(var.val) if isinstance(var, Literal) else atoms[var]

    for equation in jaxpr.eqns:
        if equation.primitive.name == "jit":
            operands = [atom(var) for var in equation.invars]
            results = _flatten(equation.params["jaxpr"], operands, numbers, operations)
        else:
            results = list(itertools.islice(numbers, len(equation.outvars)))
            read = list({var: None for var in equation.invars if not isinstance(var, Literal)})
            program = jaxpr.replace(
                constvars=read,
                invars=(),
                outvars=equation.outvars,
                eqns=[equation],
                effects=equation.effects,
            )
            operations.append(_Operation(program, [atom(var) for var in read], results))
        atoms.update(zip(equation.outvars, results, strict=True))
    return [atom(var) for var in jaxpr.outvars]


def _is_early(operation: _Operation, fixed: set[int]) -> bool:
    program = operation.program
    numbers = {atom for atom in operation.operands if isinstance(atom, int)}
    if program.effects or not numbers <= fixed:
        return False
    if not numbers:
        return all(_size(var) <= SMALL for var in program.outvars)
    return _bytes(program.outvars) <= _bytes(program.eqns[0].invars)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _bytes(variables: Iterable[Any]) -> int:
    return sum(_size(variable) * variable.aval.dtype.itemsize for variable in variables)


def _run(operations: Iterable[_Operation], values: dict[int, Any]) -> None:
    """Runs operations, adding their results to `values`."""
    for program, operands, results in operations:
        inputs = [atom.value if isinstance(atom, _Value) else values[atom] for atom in operands]
        values |= zip(results, eval_jaxpr(program, inputs), strict=True)
