"""Name tables, which convert between foreign tensors and our parameter trees.

A table is a list of rules. A rule maps one leaf of our tree to the foreign tensors it is made of;
`{i}` in a foreign name runs over the layers, which our leaf stacks on axis 0. Every foreign tensor
must be used, tied or ignored, and every leaf of our tree must be filled; otherwise an error lists
all offending names with their shapes. Names and shapes are checked before any data is read; data is
then converted leaf by leaf.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvae.errors import WeightsError
from jvae.tree import named_leaves

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """Converts the foreign tensors of one rule to one leaf (of one layer), and back.

    `shapes` returns the foreign shapes for a leaf shape; if it is None, they are those of the
    arrays that `write` returns.
    """

    read: Callable[[Sequence[np.ndarray], Shape], np.ndarray]
    write: Callable[[np.ndarray], list[np.ndarray]]
    shapes: Callable[[Shape], list[Shape]] | None = None

    def foreign_shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of the foreign tensors for a leaf of this shape."""
        if self.shapes is not None:
            return self.shapes(shape)
        # A broadcast scalar, as an array of a wrong shape might exceed memory.
        like = np.broadcast_to(np.int8(0), shape)
        try:
            return [part.shape for part in self.write(like)]
        except MemoryError:
            raise WeightsError(f"the config asks for a parameter of shape {shape}") from None


def _reshape(array: np.ndarray, shape: Shape) -> np.ndarray:
    if array.size != int(np.prod(shape)):
        raise WeightsError(f"has shape {array.shape}, which does not fit {shape}")
    return array.reshape(shape)


def flat(ndim: int) -> Transform:
    """One tensor of `ndim` axes with the same element order.

    For norms, biases and GPT-2's (in, out) kernels.
    """

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(-1) if ndim == 1 else leaf.reshape(leaf.shape[0], -1)]

    return Transform(lambda arrays, shape: _reshape(arrays[0], shape), write)


def kernel_rows(n_in: int) -> Transform:
    """One (in, out) matrix; our kernel's first `n_in` axes are the input."""

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(int(np.prod(leaf.shape[:n_in])), -1)]

    return Transform(lambda arrays, shape: _reshape(arrays[0], shape), write)


def linear(n_in: int = 1) -> Transform:
    """One (out, in) matrix; our kernel's first `n_in` axes are the input."""

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.reshape(int(np.prod(leaf.shape[:n_in])), -1).T]

    return Transform(lambda arrays, shape: _reshape(arrays[0].T, shape), write)


def joined_linear(parts: int) -> Transform:
    """`parts` (out, in) matrices, which our kernel (in, parts, ...) fuses on axis 1."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        part = (shape[0], *shape[2:])
        return np.stack([_reshape(a.T, part) for a in arrays], axis=1)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf[:, i].reshape(leaf.shape[0], -1).T for i in range(parts)]

    return Transform(read, write)


def joined_bias(parts: int) -> Transform:
    """`parts` vectors, which our bias (parts, ...) stacks on axis 0."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.stack([_reshape(a, shape[1:]) for a in arrays])

    return Transform(read, lambda leaf: [leaf[i].reshape(-1) for i in range(parts)])


def interleaved_linear(parts: int) -> Transform:
    """One (out, in) matrix with output order heads, parts, features of a head.

    Our kernel is (in, parts, heads, head).
    """

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        width, _, heads, head = shape
        by_head = _reshape(arrays[0], (heads, parts, head, width))
        return by_head.transpose(3, 1, 0, 2)

    def write(leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf.transpose(2, 1, 3, 0).reshape(-1, leaf.shape[0])]

    return Transform(read, write)


def interleaved_bias(parts: int) -> Transform:
    """The same for a vector; our bias is (parts, heads, head)."""

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        _, heads, head = shape
        return _reshape(arrays[0], (heads, parts, head)).swapaxes(0, 1)

    return Transform(read, lambda leaf: [leaf.swapaxes(0, 1).reshape(-1)])


def norm_rules(norms: Mapping[str, str]) -> list["NameRule"]:
    """Rules for scale and bias of each norm; maps our path to the foreign name."""
    return [
        NameRule(f"{ours}/{leaf}", (f"{theirs}.{name}",), flat(1))
        for ours, theirs in norms.items()
        for leaf, name in (("scale", "weight"), ("bias", "bias"))
    ]


def linear_rules(path: str, projections: Mapping[str, tuple[str, int]]) -> list["NameRule"]:
    """Rules for kernel and bias of each projection below one of our paths.

    Maps our name below the path to the foreign name and the number of input axes of our kernel.
    """
    rules = []
    for projection, (theirs, inputs) in projections.items():
        rules.append(NameRule(f"{path}/{projection}/kernel", (f"{theirs}.weight",), linear(inputs)))
        rules.append(NameRule(f"{path}/{projection}/bias", (f"{theirs}.bias",), flat(1)))
    return rules


class Vocab(NamedTuple):
    """Rows of a foreign embedding, and the number of real tokens of ours.

    New rows at the end are set to the mean of the existing ones, so that an untrained token is
    neither likely nor unlikely. Foreign rows past ours are dropped.
    """

    theirs: int
    ours: int


def vocab_rows(vocab: int | Vocab) -> Transform:
    """An embedding with exactly `vocab` rows; ours is followed by padding rows of zeros."""
    v = Vocab(vocab, vocab) if isinstance(vocab, int) else vocab

    def read(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        table = arrays[0][: v.ours]
        out = np.zeros(shape, table.dtype)
        out[: len(table)] = table
        if v.ours > len(table):
            out[len(table) : v.ours] = table.mean(0, dtype=np.float64).astype(table.dtype)
        return out

    return Transform(read, lambda leaf: [leaf[: v.ours]], lambda shape: [(v.theirs, shape[1])])


class Columns(NamedTuple):
    """Columns first..stop-1 of a foreign matrix with `total`; other rules read the rest."""

    first: int
    stop: int
    total: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """These columns of a matrix with `total` columns."""
        return array[:, self.first : self.stop]


@dataclass(frozen=True)
class NameRule:
    """One leaf of our tree and its foreign sources.

    optional: name of an optional group; if all tensors of the group are missing, its leaves are
      left out of the result.
    columns: the columns of every source that this leaf uses.
    first_layer: value of `{i}` for our layer 0.
    absent: our layers without a tensor; they are filled with ones, which are never read.
    """

    path: str
    sources: tuple[str, ...]
    transform: Transform
    columns: Columns | None = None
    first_layer: int = 0
    absent: tuple[int, ...] = ()
    optional: str = ""  # name of the group

    @property
    def stacked(self) -> bool:
        """Whether the sources run over layers."""
        return "{i}" in self.sources[0]

    def layers(self, shape: Shape) -> int:
        """Number of layers of a leaf with this shape; 1 if the sources are not per layer."""
        return shape[0] if self.stacked else 1

    def names(self, i: int) -> list[str]:
        """Foreign names for our layer i; empty for a layer without a tensor."""
        if i in self.absent:
            return []
        return [source.replace("{i}", str(self.first_layer + i)) for source in self.sources]

    def foreign_shapes(self, layer_shape: Shape) -> list[Shape]:
        """Shapes of the whole sources of one layer, or of the leaf if it is not stacked."""
        shapes = self.transform.foreign_shapes(layer_shape)
        if self.columns is None:
            return shapes
        return [(*shape[:-1], self.columns.total) for shape in shapes]


@dataclass(frozen=True)
class NameTable:
    """Rules of one family.

    ignored: patterns of foreign names without a counterpart in our tree (buffers, heads).
    tied: pairs of foreign names; the first must equal the second.
    """

    rules: tuple[NameRule, ...]
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()


class Fit(NamedTuple):
    """The result of matching a table with foreign tensors, before any data is read."""

    rules: tuple[NameRule, ...]  # rules whose tensors are present
    ignored: tuple[str, ...]  # ignored foreign names


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


def _listed(tensors: Mapping[str, Any], most: int = 5) -> str:
    return _some([f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items())], most)


def _some(words: Sequence[str], most: int = 5) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _of_prefix(missing: Sequence[str], extra: Mapping[str, Any]) -> str:
    """A hint for the error message if names differ only by a prefix."""
    ends = [name for name in missing if any(key.endswith(f".{name}") for key in extra)]
    if not ends:
        return ""
    whole = next(name for name in extra if name.endswith(f".{ends[0]}"))
    return (
        f"the names of the file begin with {whole.removesuffix(ends[0])!r}, which is not a known "
        "prefix: save the inner model alone"
    )


def _is_floating(dtype: Any) -> bool:
    """Whether a dtype is floating; file types unknown to NumPy, such as F8_E4M3, do not count."""
    return not isinstance(dtype, str) and jnp.issubdtype(dtype, jnp.floating)


def _absent_groups(table: NameTable, foreign: Mapping[str, Any]) -> set[str]:
    """Optional groups without any tensor; rules in such groups are not per layer."""
    groups = {rule.optional for rule in table.rules if rule.optional}
    present = {r.optional for r in table.rules if any(source in foreign for source in r.sources)}
    return groups - present


def fit(table: NameTable, foreign: Mapping[str, Any], target: Any) -> Fit:
    """Matches names, shapes and dtypes without reading data.

    Args:
      foreign: objects with shape and dtype, by foreign name.
      target: tree of arrays or shape structs.
    Raises: WeightsError naming every tensor that is missing, unused or has a wrong shape or dtype,
      and every leaf that is not filled.
    """
    ours = named_leaves(target)
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    rules: list[NameRule] = []
    absent = _absent_groups(table, foreign)
    for rule in table.rules:
        if rule.path not in ours:
            raise WeightsError(f"the name table fills {rule.path}, which this model does not have")
        shape = tuple(ours[rule.path].shape)
        layer_shape = shape[1:] if rule.stacked else shape
        names = [rule.names(i) for i in range(rule.layers(shape))]
        if rule.optional in absent:
            continue
        rules.append(rule)
        expected = rule.foreign_shapes(layer_shape)
        layers = [layer for layer in names if layer]
        for name, want in (
            (n, w) for layer in layers for n, w in zip(layer, expected, strict=True)
        ):
            used.add(name)
            if name not in foreign:
                missing.append(name)
            elif tuple(foreign[name].shape) != tuple(want):
                have = tuple(foreign[name].shape)
                wrong.append(f"{name} (for {rule.path}) has shape {have}; expected {tuple(want)}")
            elif not _is_floating(foreign[name].dtype):
                wrong.append(f"{name} (for {rule.path}) holds {foreign[name].dtype}, not weights")
    used.update(name for name, _ in table.tied)
    extra = {name: tensor for name, tensor in foreign.items() if name not in used}
    ignored = [n for n in extra if any(re.fullmatch(p, n) for p in table.ignored)]
    extra = {name: tensor for name, tensor in extra.items() if name not in ignored}
    ruled = {rule.path for rule in table.rules}
    unfilled = {path: leaf for path, leaf in ours.items() if path not in ruled}
    problems = [
        missing and f"tensors missing: {_some(sorted(missing))}",
        wrong and _some(wrong),
        extra and f"tensors that no part of the model uses: {_listed(extra)}",
        unfilled and f"parameters that no tensor fills: {_listed(unfilled)}",
        missing and extra and _of_prefix(missing, extra),
    ]
    if any(problems):
        raise WeightsError("; ".join(problem for problem in problems if problem))
    return Fit(tuple(rules), tuple(sorted(ignored)))


def _leaf(rule: NameRule, foreign: Mapping[str, Any], like: Any) -> np.ndarray:
    """One leaf of our tree on the host, in the dtype of `like`."""
    shape = tuple(like.shape)
    out = np.empty(shape, like.dtype)
    for i in range(rule.layers(shape)):
        names = rule.names(i)
        if not names:
            out[i] = 1
            continue
        arrays = [np.asarray(foreign[name]) for name in names]
        for name, array in zip(names, arrays, strict=True):
            if not np.all(np.isfinite(array)):
                raise WeightsError(f"{name} (for {rule.path}) holds NaN or infinity")
        if rule.columns is not None:
            arrays = [rule.columns.of(array) for array in arrays]
        part = rule.transform.read(arrays, shape[1:] if rule.stacked else shape)
        with np.errstate(over="ignore"):  # overflow of our dtype is reported below
            out[i if rule.stacked else ...] = part
    if not np.all(np.isfinite(out)):
        raise WeightsError(f"{rule.path}: its values do not fit {out.dtype}")
    return out


def leaves(
    table: NameTable, foreign: Mapping[str, Any], target: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the leaves of our tree one at a time, by path, as host arrays.

    Raises: WeightsError as `fit` does, before the first leaf; or for a tensor that is not finite or
      differs from the one it is tied to.
    """
    like = named_leaves(target)
    rules = fit(table, foreign, target).rules
    for name, twin in table.tied:
        if name in foreign and not np.array_equal(foreign[name], foreign[twin]):
            raise WeightsError(f"{name} must equal {twin}, to which it is tied, and does not")
    for rule in rules:
        yield rule.path, _leaf(rule, foreign, like[rule.path])


def read(table: NameTable, foreign: Mapping[str, Any], target: Any) -> Any:
    """Converts foreign tensors to our parameter tree, as NumPy arrays.

    Args:
      foreign: arrays or `files.Tensor`s by foreign name.
      target: tree of arrays or shape structs, which determines paths, shapes and dtypes.
    Raises: WeightsError as `leaves` does.
    """
    return nested(dict(leaves(table, foreign, target)))


def load_into(table: NameTable, foreign: Mapping[str, Any], target: Any) -> Any:
    """Converts foreign tensors to device arrays with the dtypes and shardings of `target`.

    Only one leaf at a time is on the host, and each device receives only its own shard. Leaves are
    read in the order of the table, which is the same in every process.

    Args:
      target: tree of shape structs or arrays; a leaf without a sharding goes to the default device.
    Raises: WeightsError as `leaves` does; then nothing is returned.
    """
    like = named_leaves(target)
    return nested({p: place(leaf, like[p]) for p, leaf in leaves(table, foreign, target)})


def place(array: np.ndarray, like: Any) -> jax.Array:
    """Moves a host array to the devices of `like.sharding`; each device receives only its shard."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def write(table: NameTable, params: Any, tied: bool = True) -> dict[str, np.ndarray]:
    """Converts our parameter tree to foreign tensors, the exact inverse of `read`.

    Args:
      tied: whether tied names are written too.
    """
    ours = named_leaves(params)
    out: dict[str, np.ndarray] = {}
    cut: dict[str, dict[int, np.ndarray]] = {}
    for rule in table.rules:
        if rule.optional and rule.path not in ours:
            continue
        leaf = np.asarray(ours[rule.path])
        for i, part in enumerate(leaf if rule.stacked else [leaf]):
            if i in rule.absent:
                continue
            named = zip(rule.names(i), rule.transform.write(part), strict=True)
            if rule.columns is None:
                out.update(named)
                continue
            for name, columns in named:
                cut.setdefault(name, {})[rule.columns.first] = columns
    for name, parts in cut.items():
        out[name] = np.concatenate([parts[first] for first in sorted(parts)], axis=1)
    if tied:
        for name, twin in table.tied:
            out[name] = out[twin]
    return out
