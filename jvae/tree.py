"""Names of pytree leaves: "/"-joined paths, as used by rules, masks and checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Formats a key path of `jax.tree_util`, for example as "decoder/attn/qkv"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function takes the path as its first argument.

    Where `tree` has a leaf, `rest` may have any subtree, for example a tuple of axis names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def sizes(tree: Any, depth: int | None = None) -> dict[str, int]:
    """Counts elements per path, or per path prefix of `depth` parts; accepts abstract arrays."""
    counts: dict[str, int] = {}
    for name, leaf in named_leaves(tree).items():
        prefix = "/".join(name.split("/")[:depth])
        counts[prefix] = counts.get(prefix, 0) + math.prod(leaf.shape)
    return counts
