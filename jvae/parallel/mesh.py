"""Device meshes from the config, with axes `data`, `fsdp`, `tensor`; one device is a mesh too."""

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
ROWS = ("data", "fsdp")  # the mesh axes that batches are cut over
TENSOR = "tensor"  # that attention heads, MLPs and the vocabulary are

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def make_mesh(cfg: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of sizes such as {data: -1, fsdp: 1, tensor: 2}; -1 takes all devices that remain.

    A product smaller than the number of devices uses the first ones and leaves the others idle, in
    one process only. All axes are `Auto`: Linen's sharding constraints do not work with others.

    Args:
      devices: all devices of the program unless given; compile-only devices will do.
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
        raise ConfigError(f"config.mesh: {asked}: sizes are positive, or -1 for what remains")
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
    if used == len(devices):  # axes along the links of the slice, where it has some
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices[:used], dtype=object).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh_for(cfg: Mapping[str, int], rows: int) -> Mesh:
    """As `make_mesh`, such that rows can be cut over it: with fewer devices where `data` is -1.

    For measuring a run on other devices than it was trained on; its rows stay as they are.

    Raises: ConfigError as `make_mesh`, or where the rows cannot be cut.
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
                    "%d rows of a batch do not divide over %d devices: %d are used",
                    rows,
                    mesh.size,
                    used,
                )
                return make_mesh(dict(cfg, data=data), jax.devices()[:used])
    raise ConfigError(
        f"config.mesh: cuts batches into {row_shards(mesh)} parts, but data.batch_rows is {rows}, "
        "which is no multiple of that; set --config.mesh.data and mesh.fsdp to sizes that divide it"
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A full copy on every device, of what every process has; random keys too, other than
    `jax.device_put` between processes.
    """
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis, rows or examples, cut over `data` and `fsdp`; row-major slots make both agree."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def under(mesh: Mesh, function: Callable[P, R]) -> Callable[P, R]:
    """The same function, to be compiled for this mesh, which `in_force` tells inside it."""
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def traced(*args: P.args, **named: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **named)

    return traced


def in_force() -> Any:
    """The mesh that is compiled for (see `under`); None for one device, or in a program that each
    device runs by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.are_all_axes_manual else mesh


def inside(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """What `under` does, for all functions compiled in its body."""
    return jax.set_mesh(mesh) if mesh is not None and mesh.size > 1 else contextlib.nullcontext()


def kept_rows(x: Any) -> Any:
    """x, its first axis cut over the rows of the mesh in force (see `under`), the others whole.

    Between layers: where parameters are cut too, the partitioner would now and then rather cut the
    states as they are and send these, which are larger, in place of the parameters.
    """
    mesh = in_force()
    if mesh is None or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def gathered(tree: Any) -> Any:
    """Arrays whole on every device of the mesh in force (see `under`); as they are without one.

    For loops that read all parameters in every turn: gathered before, they run without collectives.
    """
    if in_force() is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def by_rows(function: Callable[[Any, Any], Any], whole: Any, cut: Any) -> Any:
    """`function(whole, cut)`, by every device of the mesh in force on its own part of `cut` alone.

    The first axis of every array of `cut` and of the result is examples, none of which reads
    another; parameters, `whole`, are gathered before. The partitioner would move activations in
    every turn of a loop, and all would wait for the slowest part. Where the mesh cuts heads too, or
    its rows do not divide the examples, this is the partitioner's, as is a single device's.
    """
    mesh = in_force()
    if mesh is None or mesh.shape[TENSOR] > 1 or not _divides(mesh, cut):
        return function(whole, cut)
    rows = PartitionSpec(ROWS)
    mapped = jax.shard_map(
        function, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
    )
    return mapped(whole, cut)


def _divides(mesh: Any, tree: Any) -> bool:
    """Whether the rows of a mesh divide the first axis of every array."""
    return all(leaf.shape[0] % row_shards(mesh) == 0 for leaf in jax.tree.leaves(tree))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None for one device or arrays of the host."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays by examples, cut over the rows of a mesh; as they are without one, or where they
    cannot be cut.
    """
    if mesh is None or not _divides(mesh, tree):
        return tree
    return jax.device_put(tree, batch_sharding(mesh))


def to_device(batch: Any, mesh: Mesh, *, stacked: bool = False) -> Any:
    """This process's part of a batch to the global one, cut over the mesh's row axes.

    Args:
      stacked: several batches, along a first axis that stays whole.
    """
    where = NamedSharding(mesh, PartitionSpec(None, ROWS)) if stacked else batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # meant, but between processes not known to be
        return jax.tree.map(lambda part: jax.make_array_from_process_local_data(where, part), batch)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts rows are cut: the global number of rows must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def row_part(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Which part of a global batch of `rows` rows this process brings: part i of n equal ones.

    Its devices need not be neighbours in the mesh (on a torus they seldom are): the rows of its
    part fill their places in order. Processes that share a replica of the rows (tensor parallelism
    across hosts) bring the same.

    Raises: ConfigError where processes share some rows, but not all.
    """
    held: dict[int, set[tuple[int, int]]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((rows,)).items():
        begin, end, _ = (index or (slice(None),))[0].indices(rows)
        held.setdefault(device.process_index, set()).add((begin, end))
    return part_of(held, jax.process_index())


def part_of(held: Mapping[int, set[tuple[int, int]]], process: int) -> tuple[int, int]:
    """(i, n) such that the rows a process holds are part i of n equal and disjoint ones.

    Args:
      held: ranges of rows by process; all ranges are of one size, and equal or disjoint.
    """
    parts = sorted({tuple(sorted(ranges)) for ranges in held.values()})
    ranges = [one for part in parts for one in part]
    if len(set(ranges)) < len(ranges) or len({len(part) for part in parts}) > 1:
        raise ConfigError(
            f"config.mesh: the devices of process {process} hold rows {sorted(held[process])}, and "
            "others some of these; make data times fsdp a multiple of the number of processes"
        )
    return parts.index(tuple(sorted(held[process]))), len(parts)
