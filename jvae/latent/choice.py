"""A config section that selects a registered member by name (`kind`) and sets its options."""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jvae.errors import ConfigError
from jvae.fields import check_dataclass, lines


@dataclass(frozen=True)
class Choice:
    """A selected member: `kind` is its name, `options` the other keys of the section, sorted."""

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def problems_of(cls, section: Any, where: str) -> list[str]:
        """Problems of a section, except those of the member's own options."""
        if isinstance(section, cls):
            return []
        if not hasattr(section, "items") or not isinstance(dict(section).get("kind"), str):
            return [f"{where}.kind: expected the name of a registered member"]
        return []

    @classmethod
    def from_section(cls, section: Any, where: str) -> "Choice":
        """Builds a choice from a config section. Raises: ConfigError without a `kind`."""
        if problems := cls.problems_of(section, where):
            raise ConfigError(problems[0])
        values = dict(section)
        kind = values.pop("kind")
        return cls(kind, tuple(sorted(values.items())))

    def with_defaults(self, kind: str, **defaults: Any) -> "Choice":
        """The same choice; if it is of this kind, a model's own defaults fill unset options."""
        if self.kind != kind:
            return self
        return Choice(self.kind, tuple(sorted((defaults | dict(self.options)).items())))

    def options_as(self, cls: type, where: str) -> Any:
        """The options as an instance of the member's own class.

        Raises: ConfigError for an option that is unknown to the member or has an invalid value.
        """
        declared = dataclasses.is_dataclass(cls)
        if declared:
            names = [field.name for field in dataclasses.fields(cls)]
        else:
            names = list(getattr(cls, "_fields", ()))
        for name, _ in self.options:
            if name not in names:
                raise ConfigError(
                    f"{where}.{name}: {self.kind} has no such option; "
                    f"options: {', '.join(names) or 'none'}"
                )
        if declared and (problems := check_dataclass(cls, dict(self.options), where)):
            raise ConfigError(lines(problems))
        with refusals(where):
            return cls(**dict(self.options))


@contextmanager
def refusals(where: str) -> Generator[None, None, None]:
    """Converts a member's TypeError or ValueError to a ConfigError that names the section."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
