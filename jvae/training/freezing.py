"""Which parameters train, and from which step: rules of (path, layer range, step).

In this module a plan of None means that everything trains from the start.

`split` divides the parameters into two trees. The first holds all that train at some point of the
run: only these have gradients and optimizer state. The second enters a step as a constant. A
stacked leaf with only some trained layers is cut along its layer axis; `merge` reassembles it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jvae.api import Params
from jvae.errors import ConfigError
from jvae.runs.schedules import step_of
from jvae.tree import map_named, named_leaves

KEY = "config.optim.trainable"


class TrainableRule(NamedTuple):
    """Parameters whose path matches `pattern` (re.search) train from step `from_step` on.

    first, stop: layers first..stop-1 of stacked parameters; None for all; a string names a size of
    the model, such as "encoder_layers". from_step: a step count, or a share of the run as text,
    such as "1/6", rounded down.
    """

    pattern: str
    first: int | str | None = None
    stop: int | str | None = None
    from_step: int | str = 0


class LeafPart(NamedTuple):
    """Consecutive layers of one leaf that train from the same step; whole leaves have no layers."""

    path: str
    layers: tuple[int, int] | None
    from_step: int | None  # None: never

    @property
    def place(self) -> tuple[str, ...]:
        """The path of the part in its tree."""
        words = tuple(self.path.split("/"))
        return words if self.layers is None else (*words, f"{self.layers[0]}-{self.layers[1]}")


class TrainablePlan(NamedTuple):
    """The parts of every leaf, in order."""

    parts: tuple[LeafPart, ...]

    @property
    def trained(self) -> tuple[LeafPart, ...]:
        """The parts that train at some point."""
        return tuple(part for part in self.parts if part.from_step is not None)


def make_plan(
    rules: Sequence[Sequence[object]],
    abstract: Params,
    axes: Any,
    total_steps: int,
    sizes: Mapping[str, object] | None = None,
) -> TrainablePlan | None:
    """Applies the rules to parameters of these shapes.

    A parameter trains from the earliest step that any rule gives it. Without rules the plan is
    None.

    Args:
      rules: each with the fields of a `TrainableRule`.
      axes: logical axis names of every leaf; "layers" comes first in stacked ones.
      sizes: sizes of the model by name, for rules that refer to one.
    Raises: ConfigError for a rule that cannot be read, matches nothing, or names layers of
      parameters that are not stacked.
    """
    if not rules:
        return None
    leaves = named_leaves(abstract)
    stacked = {path: names[:1] == ("layers",) for path, names in _axes_by_path(abstract, axes)}
    steps: dict[str, list[int | None]] = {
        path: [None] * (leaf.shape[0] if stacked[path] else 1) for path, leaf in leaves.items()
    }
    for number, fields in enumerate(rules):
        rule, where = _rule(fields, number, sizes or {}), f"{KEY}[{number}]"
        start = step_of(rule.from_step, total_steps, where)
        matched = [path for path in leaves if _search(rule.pattern, path, where)]
        if not matched:
            examples = ", ".join(list(leaves)[:3])
            raise ConfigError(
                f"{where}: {rule.pattern!r} matches no parameter (paths: {examples} ...)"
            )
        for path in matched:
            for layer in _layers(rule, path, len(steps[path]), stacked[path], where):
                earlier = steps[path][layer]
                steps[path][layer] = start if earlier is None else min(earlier, start)
    parts = [part for path, by_layer in steps.items() for part in _parts(path, by_layer)]
    return TrainablePlan(tuple(parts))


def split(plan: TrainablePlan | None, params: Params) -> tuple[Params, Params]:
    """(trained, frozen) parameters."""
    if plan is None:
        return params, {}
    leaves = named_leaves(params)

    def cut(part: LeafPart) -> Array:
        leaf = leaves[part.path]
        return leaf if part.layers is None else leaf[slice(*part.layers)]

    frozen = [part for part in plan.parts if part.from_step is None]
    return (
        _tree((part, cut(part)) for part in plan.trained),
        _tree((part, cut(part)) for part in frozen),
    )


def merge(plan: TrainablePlan | None, trained: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    if plan is None:
        return trained
    pieces: dict[str, list[Array]] = {}
    for part in plan.parts:
        tree = frozen if part.from_step is None else trained
        for word in part.place:
            tree = tree[word]
        pieces.setdefault(part.path, []).append(tree)
    return _tree(
        (LeafPart(path, None, 0), arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays))
        for path, arrays in pieces.items()
    )


def from_steps(plan: TrainablePlan | None) -> Any:
    """A tree like the trained one with the first step of each part; None without a plan."""
    return None if plan is None else _tree((part, part.from_step) for part in plan.trained)


def pick(plan: TrainablePlan | None, tree: Any) -> Any:
    """A tree like the trained one; each part gets the value that `tree` has for its whole leaf."""
    if plan is None:
        return tree
    leaves = named_leaves(tree)
    return _tree((part, leaves[part.path]) for part in plan.trained)


def active(from_steps: Any, updates: Params, step: Int[Array, ""]) -> Params:
    """Gradients or updates after `step` steps, zeroed where training has not started yet."""
    if from_steps is None:
        return updates
    return jax.tree.map(
        lambda u, first: u if first == 0 else jnp.where(step >= first, u, jnp.zeros_like(u)),
        updates,
        from_steps,
    )


def counts(plan: TrainablePlan | None, abstract: Params, step: int) -> tuple[int, int]:
    """Number of parameters that train after `step` steps, and of all parameters."""
    total = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    if plan is None:
        return total, total
    shapes = jax.eval_shape(lambda params: split(plan, params)[0], abstract)
    starts = named_leaves(from_steps(plan))
    trained = sum(leaf.size for path, leaf in named_leaves(shapes).items() if starts[path] <= step)
    return trained, total


def never_trained(plans: Sequence[TrainablePlan | None], abstract: Params) -> frozenset[str]:
    """Paths of parameters that no plan of a run trains, in any layer."""
    paths = set(named_leaves(abstract))
    for plan in plans:
        paths -= paths if plan is None else {part.path for part in plan.trained}
    return frozenset(paths)


def _axes_by_path(abstract: Params, axes: Any) -> list[tuple[str, tuple[str | None, ...]]]:
    listed: list[tuple[str, tuple[str | None, ...]]] = []
    map_named(lambda path, _, names: listed.append((path, tuple(names))), abstract, axes)
    return listed


def _rule(fields: Any, number: int, sizes: Mapping[str, object]) -> TrainableRule:
    well = isinstance(fields, (tuple, list)) and 1 <= len(fields) <= 4
    rule = TrainableRule(*fields) if well and isinstance(fields[0], str) else None
    if rule is None:
        raise ConfigError(
            f"{KEY}[{number}] is {fields!r}; expected (pattern, first layer, last layer + 1, from "
            "step), for example ('posterior/', None, None, 0)"
        )
    for name in (rule.first, rule.stop):
        if isinstance(name, str) and not isinstance(sizes.get(name), int):
            raise ConfigError(f"{KEY}[{number}]: the model has no size {name!r} to count layers by")
    first, stop = (sizes[n] if isinstance(n, str) else n for n in (rule.first, rule.stop))
    return rule._replace(first=first, stop=stop)


def _search(pattern: str, path: str, where: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r}: {error}") from None


def _layers(rule: TrainableRule, path: str, count: int, stacked: bool, where: str) -> range:
    if rule.first is None and rule.stop is None:
        return range(count)
    if not stacked:
        raise ConfigError(
            f"{where}: has a layer range, but {path} has no layers; match it with another rule"
        )
    first = 0 if rule.first is None else int(rule.first)
    stop = count if rule.stop is None else int(rule.stop)
    if not 0 <= first < stop <= count:
        raise ConfigError(f"{where}: layers {first}..{stop}, but {path} has {count}")
    return range(first, stop)


def _parts(path: str, steps: Sequence[int | None]) -> list[LeafPart]:
    """Runs of consecutive layers with the same step."""
    ends = [i + 1 for i in range(len(steps)) if i + 1 == len(steps) or steps[i + 1] != steps[i]]
    if len(ends) == 1:
        return [LeafPart(path, None, steps[0])]
    begins = [0, *ends[:-1]]
    return [LeafPart(path, (a, b), steps[a]) for a, b in zip(begins, ends, strict=True)]


def _tree(values: Iterable[tuple[LeafPart, Any]]) -> Params:
    top: dict[str, Any] = {}
    for part, value in values:
        node = top
        *above, last = part.place
        for word in above:
            node = node.setdefault(word, {})
        node[last] = value
    return top
