"""Names of leaves: the path, joined by "/", that rules, masks and checkpoints speak about."""

import math
from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as "decoder/attn/qkv"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the path first.

    `rest` may hold any subtree, a tuple of axis names for example, where `tree` has a leaf.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def sizes(tree: Any, depth: int | None = None) -> dict[str, int]:
    """Number of elements per path, or per prefix of `depth` words; abstract arrays will do."""
    counts: dict[str, int] = {}
    for name, leaf in named_leaves(tree).items():
        prefix = "/".join(name.split("/")[:depth])
        counts[prefix] = counts.get(prefix, 0) + math.prod(leaf.shape)
    return counts
