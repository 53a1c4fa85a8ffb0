"""Device meshes with axes `data`, `fsdp` and `tensor`; a single device is also a mesh."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvae.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes that shard batches
TENSOR = "tensor"  # mesh axis that shards attention heads, MLPs and the vocabulary

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def make_mesh(cfg: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh from sizes such as {data: -1, fsdp: 1, tensor: 2}; -1 takes remaining devices.

    If the product is smaller than the number of devices, the first devices are used and the others
    stay idle; this needs a single process. All axes are `Auto`, as Linen's sharding constraints do
    not work with other axis types.

    Args:
      devices: all devices of the program by default; may be compile-only devices.
    Raises: ConfigError for an unknown axis, a size that is neither -1 nor positive, more than one
      -1, or a product that does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: int(cfg.get(axis, 1)) for axis in AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    for axis in cfg:
        if axis not in AXES:
            raise ConfigError(f"config.mesh: unknown axis {axis!r}, expected {', '.join(AXES)}")
    if any(size == 0 or size < -1 for size in sizes.values()):
        raise ConfigError(
            f"config.mesh: {asked}: expected positive sizes, or -1 for the remaining devices"
        )
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(f"config.mesh: {asked}: only one size can be -1")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(devices) % fixed:
        raise ConfigError(
            f"config.mesh: {asked}: product {fixed} does not divide the {len(devices)} devices; "
            f"choose sizes whose product does, or -1 for one of them"
        )
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    used = math.prod(sizes.values())
    if used < len(devices):
        if jax.process_count() > 1:
            raise ConfigError(
                f"config.mesh: {asked}: product {used} leaves some of the {len(devices)} devices "
                f"idle, which only a single process may do; set one size to -1"
            )
        log.warning("mesh %s uses %d of %d devices", asked, used, len(devices))
    shape = tuple(sizes.values())
    if used == len(devices):  # align the axes with the links of the slice, if it has any
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices[:used], dtype=object).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh_for(cfg: Mapping[str, int], rows: int) -> Mesh:
    """Like `make_mesh`, but with `data` of -1 it uses fewer devices if needed to divide `rows`.

    Use it to evaluate a run on other devices than it was trained on; its rows stay the same.

    Raises: ConfigError as `make_mesh` does, or if the rows cannot be sharded.
    """
    mesh = make_mesh(cfg)
    if rows % row_shards(mesh) == 0:
        return mesh
    if cfg.get("data") == -1 and jax.process_count() == 1:
        fsdp, tensor = mesh.shape["fsdp"], mesh.shape[TENSOR]
        for data in range(mesh.shape["data"] - 1, 0, -1):
            if rows % (data * fsdp) == 0:
                used = data * fsdp * tensor
                log.warning(
                    "%d rows of a batch cannot be split evenly over %d devices: using %d",
                    rows,
                    mesh.size,
                    used,
                )
                return make_mesh(dict(cfg, data=data), jax.devices()[:used])
    raise ConfigError(
        f"config.mesh: splits batches into {row_shards(mesh)} parts, but data.batch_rows is "
        f"{rows}, "
        "not a multiple of that; set --config.mesh.data and mesh.fsdp to sizes that divide it"
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Replicates values that every process has to all devices.

    Unlike `jax.device_put` across processes, this also works for random keys.
    """
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the first axis, rows or examples, over `data` and `fsdp`.

    Slots are row-major, so rows and examples are sharded consistently.
    """
    return NamedSharding(mesh, PartitionSpec(ROWS))


def under(mesh: Mesh, function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function to be compiled for a mesh, which `in_force` returns inside it."""
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def traced(*args: P.args, **named: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **named)

    return traced


def in_force() -> Any:
    """The mesh being compiled for (see `under`).

    None for one device, or inside a program that each device runs separately (`shard_map`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.are_all_axes_manual else mesh


def inside(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Context manager form of `under`, for all functions compiled in its body."""
    return jax.set_mesh(mesh) if mesh is not None and mesh.size > 1 else contextlib.nullcontext()


def kept_rows(x: Any) -> Any:
    """Constrains x to be sharded by rows over the current mesh (see `under`), other axes whole.

    Used between layers: if parameters are sharded too, the partitioner sometimes shards the states
    like them and then communicates the states, which are larger than the parameters.
    """
    mesh = in_force()
    if mesh is None or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def gathered(tree: Any) -> Any:
    """Replicates arrays over the current mesh (see `under`); a no-op without one.

    Use it before loops that read all parameters in every iteration, so that they run without
    collectives.
    """
    if in_force() is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def by_rows(function: Callable[[Any, Any], Any], whole: Any, cut: Any) -> Any:
    """Runs `function(whole, cut)` on each device of the current mesh, for its part of `cut` only.

    The first axis of every array of `cut` and of the result is examples, which must be independent
    of each other. The parameters `whole` are gathered first. Left to the partitioner, activations
    would move in every iteration of a loop, and all devices would wait for the slowest one. It is
    left to the partitioner on a single device, if the mesh also shards heads, or if its row shards
    do not divide the examples.
    """
    mesh = in_force()
    if mesh is None or mesh.shape[TENSOR] > 1 or not _divides(mesh, cut):
        return function(whole, cut)
    rows = PartitionSpec(ROWS)
    mapped = jax.shard_map(
        function, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
    )
    return mapped(whole, cut)


def drawn_by_rows(draw: Callable[[Any, Any], Any], key: Any, shape: tuple[int, ...]) -> Any:
    """`draw(key, shape)`, an array whose first axis is rows, drawn in parts on the current mesh.

    Each row shard draws its own part from a key of its own, so the values depend on the mesh. Left
    to the partitioner, every TPU would draw the array of all rows with the generator "rbg" and keep
    its part. A single device draws it whole, and so does a mesh whose row shards do not divide the
    rows.
    """
    mesh = in_force()
    if mesh is None or shape[0] % row_shards(mesh):
        return draw(key, shape)
    part = (shape[0] // row_shards(mesh), *shape[1:])
    mapped = jax.shard_map(
        lambda key: draw(jax.random.fold_in(key, jax.lax.axis_index(ROWS)), part),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(ROWS),
        check_vma=False,
    )
    return mapped(key)


def _divides(mesh: Any, tree: Any) -> bool:
    """Whether the row shards of a mesh divide the first axis of every array."""
    return all(leaf.shape[0] % row_shards(mesh) == 0 for leaf in jax.tree.leaves(tree))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays are placed on; None for one device or host arrays."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Shards per-example arrays over the rows of a mesh.

    Returns them unchanged without a mesh, or if their first axis does not divide evenly.
    """
    if mesh is None or not _divides(mesh, tree):
        return tree
    return jax.device_put(tree, batch_sharding(mesh))


def to_device(batch: Any, mesh: Mesh, *, stacked: bool = False) -> Any:
    """Makes the global batch, sharded over the mesh's row axes, from each process's part.

    Args:
      stacked: the arrays have a leading axis of several batches, which is not sharded.
    """
    where = NamedSharding(mesh, PartitionSpec(None, ROWS)) if stacked else batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # intended, but across processes not counted as explicit
        return jax.tree.map(lambda part: jax.make_array_from_process_local_data(where, part), batch)


def row_shards(mesh: Mesh) -> int:
    """Number of shards of the row axis; the global number of rows must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def row_part(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Returns (i, n): this process provides part i of n equal parts of a global batch.

    Its devices need not be adjacent in the mesh (on a torus they rarely are); the rows of its part
    are assigned to them in order. Processes that share a replica of the rows (tensor parallelism
    across hosts) provide the same part.

    Raises: ConfigError if processes share some rows, but not all.
    """
    rows_of: dict[int, set[tuple[int, int]]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((rows,)).items():
        begin, end, _ = (index or (slice(None),))[0].indices(rows)
        rows_of.setdefault(device.process_index, set()).add((begin, end))
    return part_of(rows_of, jax.process_index())


def part_of(rows_of: Mapping[int, set[tuple[int, int]]], process: int) -> tuple[int, int]:
    """Returns (i, n): the rows of a process are part i of n equal, disjoint parts.

    Args:
      rows_of: row ranges by process; all have the same size, and any two are equal or disjoint.
    """
    parts = sorted({tuple(sorted(ranges)) for ranges in rows_of.values()})
    ranges = [row_range for part in parts for row_range in part]
    if len(set(ranges)) < len(ranges) or len({len(part) for part in parts}) > 1:
        raise ConfigError(
            f"config.mesh: the devices of process {process} hold rows {sorted(rows_of[process])}, "
            "and others some of these; make data times fsdp a multiple of the number of processes"
        )
    return parts.index(tuple(sorted(rows_of[process]))), len(parts)
