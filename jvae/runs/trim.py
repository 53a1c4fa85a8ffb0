"""Writes a pretrained decoder with only the vocabulary that a text needs.

A pretrained vocabulary is mostly unused by one corpus, but every training step normalises over all
of it: on a CPU, the output layer of a small model takes a third of the time. The smaller model
still assigns a probability to any text, as single symbols stay.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvae.data import tokenizers
from jvae.data.trim import trim as trim_tokenizer
from jvae.errors import WeightsError
from jvae.pretrained import files


class Sizes(NamedTuple):
    """Entries of the vocabulary."""

    before: int
    after: int


def trim(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], texts: Iterable[str]
) -> Sizes:
    """Writes the decoder of `folder` to `out`, in the same layout, without unused tokens.

    The text is encoded as before; other texts may need more tokens. GPT-2 keeps its only special
    token, as in a run with a frozen embedding: the weights have no rows for others.

    Args:
      folder: a folder or hub name; see `jvae.pretrained.files`.
      texts: sentences of the training text.
    Raises: DataError for a tokenizer that cannot be trimmed; WeightsError for weights that cannot
      be read, or if `out` already has some or cannot be written.
    """
    target = Path(out)
    if (target / files.SAFETENSORS).exists():
        raise WeightsError(f"{target}: holds {files.SAFETENSORS} already; name a new folder")
    checkpoint = files.open_checkpoint(folder)
    rows = checkpoint.config.get("vocab_size")
    if checkpoint.flax or not isinstance(rows, int):
        raise WeightsError(
            f"{os.fspath(folder)}: only safetensors with a vocab_size in config.json can be trimmed"
        )
    tokenizer = tokenizers.open_tokenizer(os.fspath(folder), "decoder", add=False)
    small, ids = trim_tokenizer(tokenizer, texts)
    kept = np.array([i for i in ids if i < rows])  # added tokens may have no row yet
    arrays = {
        name: np.asarray(tensor)[kept] if tensor.shape[:1] == (rows,) else np.asarray(tensor)
        for name, tensor in checkpoint.tensors.items()
    }
    config = _renumbered(checkpoint.config, {old: i for i, old in enumerate(ids)})
    text = json.dumps(config | {"vocab_size": len(kept)}, indent=2, sort_keys=True) + "\n"
    try:
        small.save(target, config=True)
        (target / files.CONFIG).write_text(text, encoding="utf-8")
        files.write_safetensors(target / files.SAFETENSORS, arrays, {"format": "pt"})
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error})") from error
    return Sizes(tokenizer.vocab_size, small.vocab_size)


def _renumbered(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, object]:
    """The config with the new ids of its special tokens; it loses those without a new id."""
    out: dict[str, object] = {}
    for key, value in config.items():
        if not key.endswith("_token_id"):
            out[key] = value
        elif isinstance(value, list):
            out[key] = [new[i] for i in value if i in new]
        elif value in new:
            out[key] = new[value]
    return out
