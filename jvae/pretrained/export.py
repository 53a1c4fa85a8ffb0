"""Exports backbones from our parameter trees, in Hugging Face layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvae.errors import WeightsError
from jvae.pretrained import files, names
from jvae.pretrained.backbones import Backbone
from jvae.pretrained.names import NameTable


def config_of(
    backbone: Backbone, ours: Mapping[str, Any], special: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of a stack; arguments as for `export_backbone`.

    Raises: ValueError for a stack that does not belong to the family.
    """
    return {**backbone.describe(ours), **(special or {}), **backbone.fixed}


def export_backbone(
    folder: Path,
    backbone: Backbone,
    table: NameTable,
    params: Any,
    ours: Mapping[str, Any],
    special: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors` for `transformers`; tied tensors appear once.

    All tensors have one number type, the widest of the parameters, and config.json states it:
    `transformers` would otherwise load everything in that of the first tensor.

    Args:
      table: names without prefix, with `Vocab` (ours, ours).
      params: a tree with the leaves that the table names; other leaves are ignored.
      ours: the fields of the stack's config.
      special: values for config.json that override those of `ours`, such as pad_token_id; the
        family's fixed values override them.
    Raises: WeightsError if the folder already has weights, or the model lacks a part that the
      family always has.
    """
    if (folder / files.SAFETENSORS).exists():
        raise WeightsError(f"{folder}: holds {files.SAFETENSORS} already; name a new folder")
    try:
        config = config_of(backbone, ours, special)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    arrays = names.write(table, params, tied=False)
    dtype = np.result_type(*(array.dtype for array in arrays.values()))
    arrays = {name: array.astype(dtype, copy=False) for name, array in arrays.items()}
    config["dtype"] = dtype.name
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        name if name in backbone.unprefixed else backbone.saved_prefix + name: array
        for name, array in arrays.items()
    }
    files.write_safetensors(folder / files.SAFETENSORS, named, {"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / files.CONFIG).write_text(text, encoding="utf-8")
