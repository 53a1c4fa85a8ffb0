"""The stored form of a state: nested dictionaries of arrays, with checksums.

The files depend only on paths, shapes and dtypes, not on the classes of the state or on how it was
sharded over devices.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, UInt

from jvae.errors import CheckpointError
from jvae.tree import map_named, named_leaves

Leaf = Array | np.ndarray | jax.ShapeDtypeStruct


def key_kinds(state: Any) -> dict[str, str]:
    """Implementation of each random key of a state, by path."""
    leaves = named_leaves(state).items()
    return {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves if _is_key(leaf)}


def arrays_of(state: Any) -> Any:
    """The state with random keys replaced by their data."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf), state
    )


def abstract_arrays_of(abstract: Any) -> Any:
    """Like `arrays_of` for abstract leaves, which keep their sharding or get a local device."""

    def convert(leaf: Leaf) -> jax.ShapeDtypeStruct:
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)

    return jax.tree.map(convert, abstract)


def state_of(arrays: Mapping[str, Array], abstract: Any, kinds: Mapping[str, str]) -> Any:
    """Rebuilds a state with the structure of `abstract` from its arrays by path.

    Raises: CheckpointError if a random key is of another kind than in `abstract`.
    """

    def convert(name: str, leaf: Leaf) -> Array:
        if not _is_key(leaf):
            return arrays[name]
        key = jax.random.wrap_key_data(arrays[name], impl=kinds[name])
        if key.dtype != leaf.dtype:
            raise CheckpointError(f"{name}: random key of kind {key.dtype}, expected {leaf.dtype}")
        return key

    return map_named(convert, abstract)


def nested(tree: Any, rename: Callable[[str], str] = lambda path: path) -> dict[str, Any]:
    """Leaves in nested dictionaries by path, or by the result of `rename` for it."""
    top: dict[str, Any] = {}
    for name, leaf in named_leaves(tree).items():
        *above, last = rename(name).split("/")
        place = top
        for word in above:
            place = place.setdefault(word, {})
        place[last] = leaf
    return top


def compare(
    where: Path,
    stored: Mapping[str, Any],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    partial: bool,
) -> None:
    """Checks that two states match; `stored` may have more entries if `partial`.

    Raises: CheckpointError naming paths, shapes or dtypes that differ.
    """
    missing = [name for name in expected if name not in stored]
    extra = [] if partial else [name for name in stored if name not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{where} holds another state: "
            + "; ".join(
                f"{len(names)} {what} ({', '.join(names[:3])}{' ...' if names[3:] else ''})"
                for what, names in (("arrays not in it", missing), ("only in it", extra))
                if names
            )
            + "; was it written with another config?"
        )
    for name, leaf in expected.items():
        have = stored[name]
        if tuple(have.shape) != tuple(leaf.shape) or np.dtype(have.dtype) != leaf.dtype:
            raise CheckpointError(
                f"{where}: {name} is {have.dtype}{list(have.shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}; was it written with another config?"
            )


def checksums(arrays: Any) -> dict[str, int]:
    """A 32-bit checksum per array, by path, that changes with every flipped bit.

    Computed where the arrays are; integer sums do not depend on the sharding.
    """
    sums = jax.device_get(_checksums(named_leaves(arrays)))
    return {name: int(value) for name, value in sums.items()}


@jax.jit
def _checksums(arrays: dict[str, Array]) -> dict[str, UInt[Array, ""]]:
    # A single program: with several at once, virtual devices may deadlock waiting for each other.
    return {name: _checksum(array) for name, array in arrays.items()}


def _checksum(array: Array) -> UInt[Array, ""]:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # An odd weight is invertible modulo 2**32, so every single change shows; positions differ.
    weight = place * jnp.uint32(2_654_435_762) | jnp.uint32(1)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def _is_key(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
