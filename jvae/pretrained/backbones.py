"""Hugging Face model families: conversion of file layouts to a canonical one, and `config.json`.

The canonical layout is PyTorch's, without the prefix that models with a head add:
"h.0.attn.c_attn.weight". Flax files are converted by a rule rather than a second table: kernels are
transposed (GPT-2's too), and `kernel`, `scale` and `embedding` are renamed to `weight`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
FULL, SLIDING = "full_attention", "sliding_attention"  # names in `layer_types`
_REQUIRED: Any = object()


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
    describe: converts those fields to config.json; raises ValueError for a stack that does not
      belong to the family.
    fixed: values of config.json that never vary in the family, not even with the tokenizer.
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
    fixed: Mapping[str, Any] = field(default_factory=dict)


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
    for name, value in theirs.items():
        if name == "vocab" or name not in ours:
            continue
        have = ours[name]
        same = math.isclose(have, value) if isinstance(value, float) else have == value
        if not same:
            wrong.append(f"{key}.{name} is {have}, the checkpoint has {value}")
    if wrong:
        flags = " ".join(
            f"--config.{key}.{name}={str(value).lower()}"
            for name, value in theirs.items()
            if name in ours and name != "vocab" and ours[name] != value
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
        expect(config, **backbone.fixed)
        values = backbone.sizes(config)
    except KeyError as error:
        raise WeightsError(f"{where}: has no {error.args[0]}") from None
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from None
    except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise WeightsError(f"{where}: a value has the wrong type ({error})") from error
    for name, value in values.items():
        if isinstance(value, (bool, str)):
            continue
        if not isinstance(value, (int, float)) or value < 0:
            raise WeightsError(f"{where}: {name} is {value!r}; expected a positive number")
    return values


# Reading config.json. These functions raise KeyError for a missing key and ValueError for a value
# that cannot be used.


def expect(config: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError if config.json asks for a variant that is not implemented.

    A missing key is accepted, so `values` must hold the default of the transformers class.
    """
    for key, value in values.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} is {config[key]!r}; only {value!r} is implemented")


def expect_off(config: Mapping[str, Any], *keys: str) -> None:
    """Raises ValueError for a switch that is on; false, null and a missing key are accepted."""
    for key in keys:
        if config.get(key):
            raise ValueError(f"{key} is {config[key]!r}, which is not implemented")


def count(
    config: Mapping[str, Any], key: str, absent: Any = _REQUIRED, null: Any = _REQUIRED
) -> int:
    """A positive integer of config.json.

    Args:
      absent: the value of a missing key; by default the key is required.
      null: the value of an explicit null; by default null is an error.
    """
    return _read(config, key, absent, null, "a positive integer", _is_count)


def number(
    config: Mapping[str, Any], key: str, absent: Any = _REQUIRED, null: Any = _REQUIRED
) -> float:
    """A positive number of config.json; arguments as for `count`."""
    return float(_read(config, key, absent, null, "a positive number", _is_number))


def flag(config: Mapping[str, Any], key: str, absent: bool) -> bool:
    """A boolean of config.json; `absent` is the value of a missing key."""
    is_flag = lambda value: isinstance(value, bool)  # noqa: E731
    return _read(config, key, absent, _REQUIRED, "true or false", is_flag)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of config.json; empty for null and for a missing key."""
    is_section = lambda value: isinstance(value, Mapping)  # noqa: E731
    return _read(config, key, {}, {}, "a section", is_section)


def _read(
    config: Mapping[str, Any],
    key: str,
    absent: Any,
    null: Any,
    expected: str,
    accepts: Callable[[Any], bool],
) -> Any:
    if key not in config and absent is not _REQUIRED:
        return absent
    value = config[key]
    if value is None and null is not _REQUIRED:
        return null
    if not accepts(value):
        raise ValueError(f"{key} is {value!r}; expected {expected}")
    return value


def _is_number(value: Any) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and math.isfinite(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def usual_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that most families have under the same keys."""
    return dict(
        layers=count(config, "num_hidden_layers"),
        width=count(config, "hidden_size"),
        heads=count(config, "num_attention_heads"),
        mlp=count(config, "intermediate_size"),
        vocab=count(config, "vocab_size"),
        positions=count(config, "max_position_embeddings"),
    )


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """The attention of each layer, `FULL` or `SLIDING`; None if config.json does not list it."""
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != count(config, "num_hidden_layers"):
        raise ValueError(f"layer_types is {types!r}; expected one value per layer")
    return types


def expect_layers(config: Mapping[str, Any], kind: str) -> None:
    """Raises ValueError if `layer_types` lists any other kind of attention."""
    for stated in layer_types(config) or ():
        if stated != kind:
            raise ValueError(f"layer_types contains {stated!r}; only {kind!r} is implemented")


def global_every(config: Mapping[str, Any], first: int, absent: int) -> int:
    """The interval n of the layers with global attention, which are those with (i + first) % n = 0;
    the smallest n if several give the same layers.

    Args:
      absent: the interval if config.json has no `layer_types`.
    Raises: ValueError for any other pattern.
    """
    layers = range(count(config, "num_hidden_layers"))

    def pattern(n: int) -> list[str]:
        return [SLIDING if (i + first) % n else FULL for i in layers]

    types = layer_types(config) or pattern(absent)
    for n in range(1, len(types) + 2):
        if types == pattern(n):
            return n
    raise ValueError(f"layer_types is {types}; expected a global layer at a fixed interval")


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section on the rotary positions of all layers, from any version of transformers."""
    rope = section(config, "rope_scaling") or section(config, "rope_parameters")
    for kind in (FULL, SLIDING):
        if kind in rope:
            raise ValueError(f"rope_parameters has a section {kind!r}, which is not implemented")
    return rope


def rope_type(rope: Mapping[str, Any]) -> str:
    """The scaling of a section on rotary positions; "default" means none."""
    return rope.get("rope_type", rope.get("type", "default"))


def expect_unscaled(*ropes: Mapping[str, Any]) -> None:
    """Raises ValueError if a section on rotary positions scales the frequencies."""
    for rope in ropes:
        expect(dict(rope_type=rope_type(rope)), rope_type="default")
