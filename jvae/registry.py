"""Registries: model families, priors, posteriors, data readers and metrics by name.

    from jvae.latent.priors import PRIORS

    @PRIORS.register("student")
    def student(...): ...

A file outside the package registers its members when it is imported, for example by
`--config=mine.py`. They then work exactly like the package's own.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from jvae.errors import ConfigError

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Members by name.

    Args:
      kind: the word for a member in messages, such as "prior".
      key: the config key that selects a member, such as "model.prior.kind".
    """

    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key
        self._members: dict[str, Member] = {}

    def register(self, name: str) -> Callable[[Member], Member]:
        """Decorator that adds a member.

        Raises: ConfigError if another function has already registered the name.
        """

        def add(member: Member) -> Member:
            old = self._members.get(name)
            # A config file is executed again each time it is loaded.
            if old is not None and _origin(old) != _origin(member):
                raise ConfigError(
                    f"{self.kind} {name!r} is registered twice, by {_origin(old)} and by "
                    f"{_origin(member)}; rename one of them"
                )
            self._members[name] = member
            return member

        return add

    def __getitem__(self, name: str) -> Member:
        """Raises: ConfigError for an unknown name."""
        if name not in self._members:
            near = difflib.get_close_matches(str(name), self._members, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(
                f"{self.key} is {name!r}{hint} Known: {', '.join(self)}. {self.of_your_own}"
            )
        return self._members[name]

    @property
    def of_your_own(self) -> str:
        """What a message adds about members from outside the package."""
        return (
            f"A {self.kind} of your own must be imported first: name the file that registers it "
            "with --config, or import it in Python"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members))

    def names(self, *extra: str) -> "Names":
        """A live view of `extra` followed by the names of all members."""
        return Names(self, extra)

    def items(self) -> list[tuple[str, Member]]:
        """All (name, member) pairs, in alphabetical order."""
        return [(name, self._members[name]) for name in self]


class Names(Sequence[str]):
    """See `Registry.names`."""

    def __init__(self, registry: Registry[Any], extra: tuple[str, ...]):
        self._registry, self._extra = registry, extra

    @property
    def of_your_own(self) -> str:
        """See `Registry.of_your_own`."""
        return self._registry.of_your_own

    def __getitem__(self, index: Any) -> Any:
        return (*self._extra, *self._registry)[index]

    def __len__(self) -> int:
        return len(self._extra) + sum(1 for _ in self._registry)


def _origin(member: object) -> str:
    """Module and qualified name of a member's (first) function; survives a reload of its file."""
    parts = member if isinstance(member, tuple) else (member,)
    for part in parts:
        if inspect.isfunction(part):
            return f"{part.__module__}.{part.__qualname__}"
    return repr(member)
