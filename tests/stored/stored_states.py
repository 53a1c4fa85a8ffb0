"""The state of a checkpoint as checksums by path: the one place here that knows internals of jvae.

Checksums are CRC-32 of the bytes of each array, so that they do not depend on jvae's own.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvae.runs.checkpoint import Checkpoints
from jvae.runs.migrations import Paths

PLACE = ("step", "position", "phase", "meter", "keys")  # keys of the meta that resuming reads


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every array of a state by path, random keys as their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(_data(leaf).tobytes())
        for path, leaf in leaves
    }


def _data(leaf: Any) -> np.ndarray:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def stored_state(folder: Path) -> dict[str, Any]:
    """Checksums and place of the newest checkpoint of a run."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        arrays, meta = checkpoints.arrays()
    return _described(arrays, meta)


def today(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A state as it was stored, by the paths that its parameters have by now."""
    paths = Paths.of((folder / "config.json").read_text())
    return state | {
        part: {paths.new(path): value for path, value in state[part].items()}
        for part in ("checksums", "keys")
    }


@contextmanager
def restored_states() -> Iterator[list[dict[str, Any]]]:
    """Within its body, the list grows by every whole state that jvae restores."""
    states: list[dict[str, Any]] = []
    plain = Checkpoints.restore

    def restore(self: Checkpoints, *args: Any, **kwargs: Any) -> Any:
        state, meta = plain(self, *args, **kwargs)
        if not kwargs.get("partial"):
            states.append(_described(state, meta))
        return state, meta

    Checkpoints.restore = restore
    try:
        yield states
    finally:
        Checkpoints.restore = plain


def _described(state: Any, meta: dict[str, Any]) -> dict[str, Any]:
    return {"checksums": checksums(state), **{name: meta[name] for name in PLACE}}
