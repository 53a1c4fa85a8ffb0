"""Model families by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from jvae.api import TextVAE
from jvae.pretrained.names import NameTable
from jvae.pretrained.parts import PretrainedPart
from jvae.registry import Registry


def _nothing_joined(config: Any) -> tuple[str, ...]:
    del config
    return ()


def _no_parts(section: Any) -> tuple[PretrainedPart, ...]:
    del section
    return ()


def _as_it_is(section: Any) -> list[str]:
    del section
    return []


class Copy(NamedTuple):
    """Stacked parameters that start as those of other layers where these are loaded.

    path, source: prefixes of both. first: of the source's layers.
    """

    path: str
    source: str
    first: int


def _no_copies(config: Any) -> tuple[Copy, ...]:
    del config
    return ()


Vocab = Mapping[str, int]


class TinyConfig(Protocol):
    """A config for vocabularies of these sizes per side, with other sizes of its stacks by name."""

    def __call__(self, vocab: Vocab, /, **changes: Any) -> Any: ...


class Family(NamedTuple):
    """One system.

    config: its config dataclass.
    build(config) -> the model.
    limits(config) -> most tokens of one example per side that it reads, special tokens included.
    tiny(vocab, **changes) -> a config of a few hundred parameters, for the suites that every family
      must pass; `vocab` has the sizes of the sides "enc" and "dec", `changes` those of its stacks.
    joined(config) -> sides whose examples begin with the source, for conditional models that read
      source and text as one.
    parts(section) -> what of a `config.model` can start from pretrained weights.
    adjust(section) -> what it did, in words. Lowers, in place, values of a preset that the layers
      of pretrained stacks rule out.
    preset: the shipped config that measures this family in benchmarks, such as "lm:lstm"; empty for
      none.
    copies(config) -> parameters that start as copies of loaded ones.
    original(config) -> the names of its parameters in checkpoints of the original code; None where
      there is none to import.
    """

    config: type
    build: Callable[[Any], TextVAE]
    limits: Callable[[Any], dict[str, int]]
    tiny: TinyConfig
    joined: Callable[[Any], tuple[str, ...]] = _nothing_joined
    parts: Callable[[Any], tuple[PretrainedPart, ...]] = _no_parts
    original: Callable[[Any], NameTable] | None = None
    preset: str = ""
    adjust: Callable[[Any], list[str]] = _as_it_is
    copies: Callable[[Any], tuple[Copy, ...]] = _no_copies


FAMILIES: Registry[Family] = Registry("model family", "model.family")
