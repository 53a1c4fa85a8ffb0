"""The pretrained weights a model starts from, in the folders or hub names that its config names."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from jvae import models
from jvae.errors import WeightsError
from jvae.pretrained import backbones, files, names
from jvae.pretrained.names import NameTable, Vocab
from jvae.tree import named_leaves


def named(config: ConfigDict) -> dict[str, str]:
    """Folder or hub name of each pretrained part that a config names, by key of `init`."""
    parts = models.family(config.model.family).parts(config.model)
    return {part.key: str(config.init[part.key]) for part in parts if config.init[part.key]}


def located(where: Mapping[str, str]) -> dict[str, str]:
    """The same with local folders as absolute paths, so that they need no working directory.

    Raises: WeightsError for the path of a folder that does not exist.
    """
    return {
        key: str(Path(name).expanduser().resolve()) if files.is_local(name) else name
        for key, name in where.items()
    }


def is_folder(name: str) -> bool:
    """Whether a name returned by `located` is a local folder, which may no longer exist."""
    return Path(name).is_absolute()


def read(
    config: ConfigDict, where: Mapping[str, str], target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Array]:
    """Reads the pretrained parameters at some paths, as they are at the start of training.

    Args:
      config: finalised. where: as returned by `named`. target: shape structs by path.
    Raises: WeightsError for files that cannot be read or do not fit.
    """
    leaves: dict[str, Array] = {}
    for part in models.family(config.model.family).parts(config.model):
        if part.key not in where:
            continue
        checkpoint = files.open_checkpoint(where[part.key])
        rows = backbones.sizes(part.backbone, checkpoint)["vocab"]
        ours = config.model[part.sections[0]].vocab
        table = part.table(Vocab(rows, ours))
        rules = tuple(rule for rule in table.rules if rule.path in target)
        tensors = backbones.canonical(part.backbone, checkpoint)
        # Tensors for other paths are ignored here, not reported as unused.
        table = NameTable(rules, (*table.ignored, ".*"), table.tied)
        like = {rule.path: target[rule.path] for rule in rules}
        try:
            leaves |= named_leaves(names.load_into(table, tensors, like))
        except WeightsError as error:
            raise WeightsError(f"{checkpoint.name}: {error}") from None
    return leaves


def same(leaves: Mapping[str, Array], base: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters that still equal those of the base, bit for bit."""
    return {
        path: leaf
        for path, leaf in base.items()
        if np.array_equal(np.asarray(leaf), np.asarray(leaves[path]))
    }


def digest(leaves: Mapping[str, Array]) -> str:
    """SHA-256 of parameters by path."""
    total = hashlib.sha256()
    for path in sorted(leaves):
        array = np.asarray(leaves[path])
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
