"""The engine of the name tables: foreign tensors <-> parameter tree.

A table is a list of rules. A rule names one leaf of our tree and the foreign tensors it is made of;
`{i}` in a foreign name runs over the layers, which our leaf holds stacked on axis 0. Every foreign
tensor must be used, tied or on the ignore list, and every leaf of our tree must be filled, else the
error names each culprit with its shape.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jvae.errors import WeightsError
from jvae.tree import named_leaves

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How the foreign tensors of one rule become one leaf (of one layer), and back."""

    read: Callable[[Sequence[np.ndarray], Shape], np.ndarray]
    write: Callable[[np.ndarray], list[np.ndarray]]


def _reshape(array: np.ndarray, shape: Shape) -> np.ndarray:
    if array.size != int(np.prod(shape)):
        raise WeightsError(f"has shape {array.shape}, which does not fit {shape}")
    return array.reshape(shape)


def flat(ndim: int) -> Transform:
    """One tensor of `ndim` axes with the same order of elements (norms, biases, GPT-2's (in, out)
    kernels).
    """

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(-1) if ndim == 1 else leaf.reshape(leaf.shape[0], -1)]

    return Transform(lambda arrays, shape: _reshape(arrays[0], shape), write)


def kernel_rows(n_in: int) -> Transform:
    """One (in, out) matrix whose input is our first `n_in` axes."""

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(int(np.prod(leaf.shape[:n_in])), -1)]

    return Transform(lambda arrays, shape: _reshape(arrays[0], shape), write)


def linear(n_in: int = 1) -> Transform:
    """One (out, in) matrix; our kernel's first `n_in` axes are the input."""

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(int(np.prod(leaf.shape[:n_in])), -1).T]

    return Transform(lambda arrays, shape: _reshape(arrays[0].T, shape), write)


def joined_linear(parts: int) -> Transform:
    """`parts` (out, in) matrices that our kernel (in, parts, ...) holds fused on axis 1."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        part = (shape[0], *shape[2:])
        return np.stack([_reshape(a.T, part) for a in arrays], axis=1)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf[:, i].reshape(leaf.shape[0], -1).T for i in range(parts)]

    return Transform(read, write)


def joined_bias(parts: int) -> Transform:
    """`parts` vectors that our bias (parts, ...) holds on axis 0."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.stack([_reshape(a, shape[1:]) for a in arrays])

    return Transform(read, lambda leaf: [leaf[i].reshape(-1) for i in range(parts)])


def vocab_rows(vocab: int) -> Transform:
    """An embedding of exactly `vocab` rows; ours has padding rows behind them, zeros."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        table = arrays[0]
        if table.shape != (vocab, shape[1]):
            raise WeightsError(f"has shape {table.shape}; expected {(vocab, shape[1])}")
        return np.pad(table, ((0, shape[0] - vocab), (0, 0)))

    return Transform(read, lambda leaf: [leaf[:vocab]])


class Columns(NamedTuple):
    """Columns first..stop-1 of a foreign matrix of `total`; other rules read the others."""

    first: int
    stop: int
    total: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of a matrix. Raises WeightsError if it has other than `total` columns."""
        if array.ndim != 2 or array.shape[1] != self.total:
            raise WeightsError(f"has shape {array.shape}; expected {self.total} columns")
        return array[:, self.first : self.stop]


@dataclass(frozen=True)
class Rule:
    """One leaf of our tree and where it comes from.

    columns: the part of every source that this leaf holds. first_layer: what `{i}` stands for at
    our layer 0.
    """

    path: str
    sources: tuple[str, ...]
    transform: Transform
    columns: Columns | None = None
    first_layer: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the sources run over layers."""
        return "{i}" in self.sources[0]


@dataclass(frozen=True)
class Table:
    """Rules of one family.

    ignored: patterns of foreign names that are no parameters (buffers). tied: foreign names that
    must equal another one.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()


def nested(flat_tree: Mapping[str, Any]) -> Any:
    """The inverse of `named_leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat_tree.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _layer_names(rule: Rule, i: int) -> list[str]:
    return [source.replace("{i}", str(rule.first_layer + i)) for source in rule.sources]


def _listed(tensors: Mapping[str, Any], most: int = 20) -> str:
    names = [f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items())]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read(table: Table, foreign: Mapping[str, np.ndarray], target: Any) -> Any:
    """Our parameter tree from foreign tensors.

    Args:
      foreign: tensors by foreign name; nothing but real arrays.
      target: tree of arrays or shape structs that gives paths, shapes and dtypes.

    Raises: WeightsError naming every tensor that is missing, unused, unequal to what it is tied to,
    not finite or of a wrong shape.
    """
    shapes = named_leaves(target)
    used: set[str] = set()
    missing: list[str] = []
    out: dict[str, np.ndarray] = {}
    for rule in table.rules:
        if rule.path not in shapes:
            raise WeightsError(f"the name table fills {rule.path}, which this model does not have")
        like = shapes[rule.path]
        layer_shape = tuple(like.shape[1:]) if rule.stacked else tuple(like.shape)
        parts = []
        for i in range(like.shape[0] if rule.stacked else 1):
            names = _layer_names(rule, i)
            absent = [name for name in names if name not in foreign]
            missing += absent
            if absent:
                continue
            used.update(names)
            try:
                tensors = [np.asarray(foreign[n]) for n in names]
                if rule.columns is not None:
                    tensors = [rule.columns.of(tensor) for tensor in tensors]
                part = rule.transform.read(tensors, layer_shape)
            except WeightsError as error:
                raise WeightsError(f"{', '.join(names)} (for {rule.path}) {error}") from None
            if not np.all(np.isfinite(part)):
                raise WeightsError(f"{', '.join(names)} (for {rule.path}) holds NaN or infinity")
            parts.append(part.astype(like.dtype))
        if len(parts) == (like.shape[0] if rule.stacked else 1):
            out[rule.path] = np.stack(parts) if rule.stacked else parts[0]
    if missing:
        raise WeightsError(f"tensors missing: {', '.join(sorted(missing))}")
    for name, other in table.tied:
        if name in foreign:
            used.add(name)
            if not np.array_equal(foreign[name], foreign[other]):
                raise WeightsError(f"{name} must equal {other}, to which it is tied, and does not")
    extra = {
        name: tensor
        for name, tensor in foreign.items()
        if name not in used and not any(re.fullmatch(p, name) for p in table.ignored)
    }
    if extra:
        raise WeightsError(f"tensors that no part of the model uses: {_listed(extra)}")
    unfilled = {path: leaf for path, leaf in shapes.items() if path not in out}
    if unfilled:
        raise WeightsError(f"parameters that no tensor fills: {_listed(unfilled)}")
    return nested(out)


def write(table: Table, params: Any) -> dict[str, np.ndarray]:
    """Foreign tensors from our parameter tree, the exact inverse of `read`; tied names are written
    too.
    """
    ours = named_leaves(params)
    out: dict[str, np.ndarray] = {}
    cut: dict[str, dict[int, np.ndarray]] = {}
    for rule in table.rules:
        leaf = np.asarray(ours[rule.path])
        for i, part in enumerate(leaf if rule.stacked else [leaf]):
            named = zip(_layer_names(rule, i), rule.transform.write(part), strict=True)
            if rule.columns is None:
                out.update(named)
                continue
            for name, columns in named:
                cut.setdefault(name, {})[rule.columns.first] = columns
    for name, parts in cut.items():
        out[name] = np.concatenate([parts[first] for first in sorted(parts)], axis=1)
    for name, other in table.tied:
        out[name] = out[other]
    return out
