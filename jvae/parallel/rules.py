"""The table from logical axis names to mesh axes, and shardings derived from it."""

import logging
from collections import Counter
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvae.parallel.mesh import replicated
from jvae.tree import map_named

# In the form that `flax.linen.logical_axis_rules` takes.
RULES: tuple[tuple[str, str | None], ...] = (
    ("layers", None),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("head", None),
    ("mlp", "tensor"),
    ("latent", None),
    ("norm", None),
    ("type", None),
    ("position", None),
)

Axes = tuple[str | None, ...]

log = logging.getLogger(__name__)


def partition_spec(
    axes: Axes, shape: tuple[int, ...], mesh: Mesh, name: str = "array"
) -> PartitionSpec:
    """The partition spec of one array.

    A dimension that its mesh axis does not divide is not sharded, and this is logged.

    Args:
      axes: a logical name or None per dimension.
      name: path of the array, for messages.
    Raises: ValueError for a wrong number of names, an unknown name, a repeated name, or two names
      that map to the same mesh axis.
    """
    if not isinstance(axes, tuple) or len(axes) != len(shape):
        raise ValueError(f"{name}: axes {axes!r} do not name the dimensions of shape {shape}")
    table = dict(RULES)
    named = [axis for axis in axes if axis is not None]
    if unknown := [axis for axis in named if axis not in table]:
        raise ValueError(f"{name}: unknown logical axis {unknown[0]!r}, known: {', '.join(table)}")
    # Also checked for names without a mesh axis, since a later rule could make them clash.
    if twice := [axis for axis, count in Counter(named).items() if count > 1]:
        raise ValueError(f"{name}: logical axis {twice[0]!r} appears twice in {axes}")
    targets = Counter(table[axis] for axis in named if table[axis] is not None)
    if clash := [target for target, count in targets.items() if count > 1]:
        both = [axis for axis in named if table[axis] == clash[0]]
        raise ValueError(f"{name}: logical axes {both} both go to the mesh axis {clash[0]!r}")
    spec: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        target = None if axis is None else table[axis]
        if target is not None and size % mesh.shape[target]:
            log.info(
                "%s: %s of size %d is not divisible by mesh axis %s=%d, so it is not sharded",
                *(name, axis, size, target, mesh.shape[target]),
            )
            target = None
        spec.append(target)
    return PartitionSpec(*spec)


def shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """The NamedSharding of each leaf of `abstract`.

    Args:
      axes: a tree like `abstract` with a tuple of logical names per leaf.
    Raises: ValueError as `partition_spec` does, or if the trees differ.
    """
    return map_named(
        lambda name, leaf, names: NamedSharding(
            mesh, partition_spec(names, leaf.shape, mesh, name)
        ),
        abstract,
        axes,
    )


def optimizer_shardings(
    tx: optax.GradientTransformation, abstract_params: Any, param_shardings: Any, mesh: Mesh
) -> Any:
    """The sharding of each leaf of the optimizer state; moments follow their parameter."""
    abstract_state = jax.eval_shape(tx.init, abstract_params)
    return optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        abstract_state,
        param_shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
