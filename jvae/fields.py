"""What a config value may be: its type, range or choices, and a line of help, declared once.

Fixed sections declare their fields in `jvae.validation.schema`. A model family declares them on its
config dataclass, with `setting`:

    @dataclass(frozen=True)
    class MyConfig:
        latent: int = setting(32, low=1, high=2**20, help="Width of z.")

`check_dataclass` needs nothing but that dataclass, so families from outside the package are checked
like those inside. A field without `setting` is checked for the type of its annotation.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 2**31 - 1  # of counts that become int32
METADATA = "field"
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class Needs(NamedTuple):
    """A condition without which a field has no effect.

    holds: of the dataclass instance that has the field. text: the condition in words.
    """

    holds: Callable[[Any], bool]
    text: str


class Problem(NamedTuple):
    """One mistake in a config.

    keys: dotted keys it is about. text: the message, which names them. idle: the value is only
    without effect.
    """

    keys: tuple[str, ...]
    text: str
    idle: bool = False


@dataclasses.dataclass(frozen=True)
class Field:
    """The values that one config key may have.

    kind: bool, int, float or str; with `many`, a tuple of these; None leaves the type open. Bounds:
    low and high belong to the range, above and below do not. choices: of a string, or of the
    members of a tuple. also: values outside the range or the choices. optional: None is a value.
    pattern: strings are regular expressions. absent: what a config without the key means. needs:
    see `Needs`.
    """

    kind: type | None
    help: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str] = ()
    also: tuple[Any, ...] = ()
    many: bool = False
    empty: bool = True
    optional: bool = False
    pattern: bool = False
    absent: Any = None
    needs: Needs | None = None

    def expected(self) -> str:
        """Type and range in words, such as "an integer from 1 to 64"."""
        if self.kind is None:
            return "a tuple of rules" if self.many else "a value"
        if self.choices:
            words = ("some of " if self.many else "one of ") + ", ".join(self.choices)
        elif self.pattern:
            words = "regular expressions" if self.many else "a regular expression"
        else:
            words = _KINDS[self.kind] + self._range()
            if self.many:
                words = f"a tuple, each {words}"
        if self.many and not self.empty:
            words += ", one at least"
        for value in self.also:
            words += f", or {value!r}"
        return words + (", or none" if self.optional else "")

    def problem(self, value: Any) -> str | None:
        """Why a value cannot be used, None where it can."""
        if value is None:
            return None if self.optional else self.expected()
        if not self.many:
            return self._of_one(value)
        if not isinstance(value, (tuple, list)) or not (value or self.empty):
            return self.expected()
        return next((why for one in value if (why := self._of_one(one))), None)

    def fix(self, value: Any, default: Any = None) -> Any:
        """The closest allowed value, None where none is close; `default` is used for a wrong type
        and for a bound that is not itself allowed.
        """
        if self.choices and isinstance(value, str):
            near = difflib.get_close_matches(value, self.choices, n=1, cutoff=0.5)
            return near[0] if near else None
        if self._is_number(value) and not math.isnan(value) and not self.many:
            for bound, outside in (
                (self.low, self.low is not None and value < self.low),
                (self.high, self.high is not None and value > self.high),
            ):
                if outside and bound is not None and self.kind is not None:
                    return self.kind(bound)
        return default if default is not None and self.problem(default) is None else None

    def _of_one(self, value: Any) -> str | None:
        if self.kind is None or any(value == one and _same(value, one) for one in self.also):
            return None
        if self.kind in (int, float):
            whole = self.kind is int and (isinstance(value, bool) or not isinstance(value, int))
            if not self._is_number(value) or whole or not math.isfinite(value):
                return self.expected()
            outside = (
                (self.low is not None and value < self.low)
                or (self.high is not None and value > self.high)
                or (self.above is not None and value <= self.above)
                or (self.below is not None and value >= self.below)
            )
            return self.expected() if outside else None
        if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
            return self.expected()
        if self.pattern:
            try:
                re.compile(value)
            except re.error as error:
                return f"{self.expected()}; {value!r} is none: {error}"
        return None

    def _is_number(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def _range(self) -> str:
        if self.low is not None and self.high == MOST and self.low >= 0:
            return f" of at least {_number(self.low)}"
        if self.low is not None and self.high is not None:
            return f" from {_number(self.low)} to {_number(self.high)}"
        words = []
        if self.low is not None:
            words.append(f"of at least {_number(self.low)}")
        if self.above is not None:
            words.append(f"above {_number(self.above)}")
        if self.high is not None:
            words.append(f"at most {_number(self.high)}")
        if self.below is not None:
            words.append(f"below {_number(self.below)}")
        return "".join(f" {word}" if i == 0 else f" and {word}" for i, word in enumerate(words))


def setting(default: Any = dataclasses.MISSING, **values: Any) -> Any:
    """A field of a config dataclass with the values of its `Field`; the annotation is its kind."""
    return dataclasses.field(default=default, metadata={METADATA: values})


def fields_of(cls: type) -> dict[str, Field | type]:
    """The fields of a config dataclass by name; a nested config dataclass is that class."""
    hints = typing.get_type_hints(cls)
    declared = {}
    for one in dataclasses.fields(cls):
        kind, values = hints[one.name], dict(one.metadata.get(METADATA, {}))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            declared[one.name] = kind
            continue
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            members = [arm for arm in typing.get_args(kind) if arm is not type(None)]
            if len(members) == 1 and dataclasses.is_dataclass(members[0]):
                declared[one.name] = typing.cast(type, members[0])  # a section that may be absent
                continue
            values.setdefault("optional", len(members) < len(typing.get_args(kind)))
            kind = members[0] if len(members) == 1 else None
        if typing.get_origin(kind) is tuple:
            values["many"], kind = True, typing.get_args(kind)[0]
        declared[one.name] = Field(kind if kind in _KINDS else None, **values)
    return declared


def check(key: str, field: Field, value: Any, default: Any = None) -> list[Problem]:
    """At most one problem: key, value, what is expected and the closest fix."""
    why = field.problem(value)
    if why is None:
        return []
    fix = field.fix(value, default)
    hint = "" if fix is None else f"; try --config.{key}={as_flag(fix)}"
    return [Problem((key,), f"{key}={_shown(value)}: expected {why}{hint}")]


def check_dataclass(cls: type, section: Any, where: str) -> list[Problem]:
    """Problems of single fields of a section that a config dataclass will be built from."""
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        return [Problem((where,), f"{where}={_shown(section)}: expected a section")]
    declared = fields_of(cls)
    defaults = defaults_of(cls)
    problems = []
    for name, value in section.items():
        key = f"{where}.{name}"
        if name not in declared:
            near = difflib.get_close_matches(str(name), list(declared), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(Problem((key,), f"{key}: {cls.__name__} has no such field{hint}"))
            continue
        field = declared[name]
        if isinstance(field, Field):
            problems += check(key, field, value, defaults.get(name))
        elif hasattr(field, "problems_of"):  # a member whose registry knows its fields
            problems += [
                one if isinstance(one, Problem) else Problem((key,), one)
                for one in field.problems_of(value, key)
            ]
        else:
            problems += check_dataclass(field, value, key)
    for name in declared:
        if name not in section and name not in defaults:
            problems.append(Problem((f"{where}.{name}",), f"{where}.{name}: missing; set it"))
    return problems


def check_effect(config: Any, where: str) -> list[Problem]:
    """Fields of a config dataclass, or of one nested in it, that differ from their default but have
    no effect.
    """
    problems, defaults = [], defaults_of(type(config))
    for name, field in fields_of(type(config)).items():
        value, key = getattr(config, name), f"{where}.{name}"
        if not isinstance(field, Field):
            if not hasattr(field, "problems_of") and value is not None:
                problems += check_effect(value, key)
        elif field.needs and value != defaults.get(name) and not field.needs.holds(config):
            problems.append(idle(key, value, defaults.get(name), field.needs.text))
    return problems


def idle(key: str, value: Any, default: Any, needs: str) -> Problem:
    """The problem of a value that has no effect."""
    back = "; leave it empty" if default in ("", ()) else f"; set it to {as_flag(default)}"
    return Problem((key,), f"{key}={_shown(value)} has no effect: {needs}{back}", idle=True)


def defaults_of(cls: type) -> dict[str, Any]:
    """Fields of a dataclass that have a default, by name."""
    defaults = {}
    for one in dataclasses.fields(cls):
        if one.default is not dataclasses.MISSING:
            defaults[one.name] = one.default
        elif one.default_factory is not dataclasses.MISSING:
            defaults[one.name] = one.default_factory()
    return defaults


def as_flag(value: Any) -> str:
    """A value as it is written after `--config.KEY=`."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(as_flag(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def lines(problems: Sequence[Problem]) -> str:
    """All problems as one message, a line each."""
    texts = list(dict.fromkeys(one.text for one in problems))
    if len(texts) == 1:
        return texts[0]
    return f"{len(texts)} values of the config cannot be used:\n  " + "\n  ".join(texts)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}" if abs(value) < 1e6 else f"{int(value):,}"
    return f"{value:g}"


def _same(value: Any, one: Any) -> bool:
    return isinstance(value, bool) == isinstance(one, bool)
