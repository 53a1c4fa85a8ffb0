"""The registry of model families."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from jvae.api import TextVAE
from jvae.pretrained.names import NameTable
from jvae.pretrained.parts import PretrainedPart
from jvae.registry import Registry


def _nothing_joined(config: object) -> tuple[str, ...]:
    del config
    return ()


def _no_parts(section: ConfigDict) -> tuple[PretrainedPart, ...]:
    del section
    return ()


def _as_it_is(section: ConfigDict) -> list[str]:
    del section
    return []


class Copy(NamedTuple):
    """Stacked parameters that are initialised as copies of other layers, if those are loaded.

    path, source: path prefixes of the copy and of the original. first: first layer copied.
    """

    path: str
    source: str
    first: int


def _no_copies(config: object) -> tuple[Copy, ...]:
    del config
    return ()


Vocab = Mapping[str, int]


class TinyConfig(Protocol):
    """Makes a config for the given vocabulary sizes per side; `changes` override stack sizes."""

    def __call__(self, vocab: Vocab, /, **changes: object) -> Any: ...


class Family(NamedTuple):
    """One model family.

    config: its config dataclass.
    build(config) -> the model.
    limits(config) -> maximum tokens per example, including special tokens, for each side it reads.
    tiny(vocab, **changes) -> a config with a few hundred parameters, for the test suites of all
      families; `vocab` has vocabulary sizes of the sides "enc" and "dec", `changes` stack sizes.
    joined(config) -> sides whose examples are prefixed with the source, for conditional models that
      read source and text as one sequence.
    parts(section) -> the parts of a `config.model` that can be loaded from pretrained weights.
    adjust(section) -> messages on what it changed. Lowers, in place, values of a preset that the
      layers of pretrained stacks do not allow.
    preset: the shipped config for benchmarks of this family, such as "lm:lstm"; empty for none.
    copies(config) -> parameters that are initialised as copies of loaded ones, and have low-rank
      additions of the same shape.
    original(config) -> the names of its parameters in checkpoints of the original code; None if
      such checkpoints cannot be imported.
    """

    config: type
    build: Callable[[Any], TextVAE]
    limits: Callable[[Any], dict[str, int]]
    tiny: TinyConfig
    joined: Callable[[Any], tuple[str, ...]] = _nothing_joined
    parts: Callable[[ConfigDict], tuple[PretrainedPart, ...]] = _no_parts
    original: Callable[[Any], NameTable] | None = None
    preset: str = ""
    adjust: Callable[[ConfigDict], list[str]] = _as_it_is
    copies: Callable[[Any], tuple[Copy, ...]] = _no_copies


FAMILIES: Registry[Family] = Registry("model family", "model.family")
