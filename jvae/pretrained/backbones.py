"""Hugging Face model families: conversion of file layouts to a canonical one, and `config.json`.

The canonical layout is PyTorch's, without the prefix that models with a head add:
"h.0.attn.c_attn.weight". Flax files are converted by a rule rather than a second table: kernels are
transposed (GPT-2's too), and `kernel`, `scale` and `embedding` are renamed to `weight`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jvae.errors import WeightsError
from jvae.pretrained.files import Checkpoint, Tensors

# Leading parts of names that come from wrappers around a model, not from the model itself.
WRAPPERS = (
    *(
        "_orig_mod",
        "module",
        "0",
        "auto_model",
    ),  # torch.compile, DataParallel, sentence-transformers
    *("model", "base_model", "language_model", "transformer"),  # a head
    *("bert", "roberta", "distilbert", "gpt_neox"),
)
_FLAX = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Names of classification heads, and of the modules that follow the encoder in a file of
# sentence-transformers. A model of ours has none of them.
HEADS = (
    r"(score|qa_outputs|classifier|classification_head)\..*",
    r"[1-9]\d*\.(linear|norm)\.(weight|bias)",
)


@dataclass(frozen=True)
class Backbone:
    """One family.

    name: `model_type` in its config.json.
    prefix: prefix of names in checkpoints saved with a head.
    native_prefix: leading parts of unprefixed names, kept although they are in `WRAPPERS`.
    renamed: (pattern, replacement) for older names.
    ignored: patterns of buffers and heads.
    tied: pairs of names; if the first is present, it must equal the second.
    sizes: converts config.json to the fields of our stack's config.
    describe: converts those fields, and those for our special ids, to config.json; raises
      ValueError for a stack that does not belong to the family.
    """

    name: str
    prefix: str
    renamed: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]
    describe: Callable[[Mapping[str, Any]], dict[str, Any]]
    saved_prefix: str = ""  # prefix of names when exporting the architecture of `describe`
    unprefixed: tuple[str, ...] = ()  # names that are exported without that prefix
    native_prefix: str = ""


def canonical(backbone: Backbone, checkpoint: Checkpoint) -> Tensors:
    """The tensors of a checkpoint under PyTorch names without prefix; data is not read.

    Any sequence of `WRAPPERS` in front of a name is removed; see `prefixes`.

    Raises: WeightsError for names of neither layout, and for two names of the same tensor.
    """
    dotted: Tensors = {}
    origin: dict[str, str] = {}
    for name, tensor in checkpoint.tensors.items():
        new = name
        if checkpoint.flax:
            *parents, last = name.split("/")
            new = ".".join([*parents, _FLAX.get(last, last)])
            if last == "kernel" and len(tensor.shape) == 2:
                tensor = tensor.T
        new = new[len(_prefix(backbone, new)) :]
        for pattern, replacement in backbone.renamed:
            new = re.sub(pattern, replacement, new)
        if new in dotted:
            raise WeightsError(
                f"{checkpoint.name}: {origin[new]} and {name} both mean {new}; expected one"
            )
        dotted[new], origin[new] = tensor, name
    return dotted


def prefixes(backbone: Backbone, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The prefixes that `canonical` removes from names, the most frequent first."""
    dotted = (name.replace("/", ".") for name in checkpoint.tensors)
    count = Counter(_prefix(backbone, name) for name in dotted)
    return tuple(prefix for prefix, _ in count.most_common() if prefix)


def _prefix(backbone: Backbone, name: str) -> str:
    """The part of a tensor's name that `canonical` removes."""
    rest = name
    while not (backbone.native_prefix and rest.startswith(backbone.native_prefix)):
        word, dot, after = rest.partition(".")
        if rest.startswith(backbone.prefix) and backbone.prefix:
            rest = rest.removeprefix(backbone.prefix)
        elif dot and word in WRAPPERS:
            rest = after
        else:
            break
    return name[: len(name) - len(rest)]


def check_sizes(backbone: Backbone, checkpoint: Checkpoint, ours: Mapping[str, Any], key: str):  # noqa: ANN201
    """Checks that a checkpoint is of this family and, except for vocabulary, has our stack's sizes.

    Args:
      ours: the stack's section of the config.
      key: name of that section, for messages.
    Raises: WeightsError naming every value that differs and the value to set.
    """
    theirs = sizes(backbone, checkpoint)
    wrong = []
    for field, value in theirs.items():
        if field == "vocab" or field not in ours:
            continue
        have = ours[field]
        same = math.isclose(have, value) if isinstance(value, float) else have == value
        if not same:
            wrong.append(f"{key}.{field} is {have}, the checkpoint has {value}")
    if wrong:
        flags = " ".join(
            f"--config.{key}.{field}={str(value).lower()}"
            for field, value in theirs.items()
            if field in ours and field != "vocab" and ours[field] != value
        )
        raise WeightsError(f"{checkpoint.name}: {'; '.join(wrong)}. To use it, add {flags}")


def sizes(backbone: Backbone, checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of our stack's config that a checkpoint determines.

    Raises: WeightsError for another family, a missing key or a variant that is not implemented.
    """
    config, where = checkpoint.config, f"{checkpoint.name}/config.json"
    kind = config.get("model_type", backbone.name)
    if kind != backbone.name:
        raise WeightsError(f"{where}: model_type is {kind!r}; expected {backbone.name!r}")
    try:
        values = backbone.sizes(config)
    except KeyError as error:
        raise WeightsError(f"{where}: has no {error.args[0]}") from None
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from None
    for field, value in values.items():
        if isinstance(value, (bool, str)):
            continue
        if not isinstance(value, (int, float)) or value <= 0:
            raise WeightsError(f"{where}: {field} is {value!r}; expected a positive number")
    return values


def expect(config: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError if config.json asks for a variant that is not implemented.

    Missing keys are accepted.
    """
    for key, value in values.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} is {config[key]!r}; only {value!r} is implemented")
