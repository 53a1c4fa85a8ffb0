"""Declares config fields: type, range or choices, and one line of help.

Fixed sections declare their fields in `jvae.validation.schema`. A model family declares its fields
on its config dataclass, with `setting`:

    @dataclass(frozen=True)
    class MyConfig:
        latent: int = setting(32, low=1, high=2**20, help="Width of z.")

`check_dataclass` needs only that dataclass, so families defined outside the package are checked
like the package's own. A field without `setting` is only checked against its annotated type.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 2**31 - 1  # upper limit of counts that are stored as int32
METADATA = "field"
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class Needs(NamedTuple):
    """A condition that must hold for a field to have an effect.

    holds: takes the dataclass instance that has the field.
    text: the condition in words.
    """

    holds: Callable[[Any], bool]
    text: str


class Problem(NamedTuple):
    """One mistake in a config.

    keys: the dotted keys involved.
    text: the message, which names the keys.
    idle: True if the value is valid but has no effect.
    """

    keys: tuple[str, ...]
    text: str
    idle: bool = False


@dataclasses.dataclass(frozen=True)
class Field:
    """The values allowed for one config key.

    kind: bool, int, float or str, or None for any type. many: the value is a tuple of that type.
    low, high: inclusive bounds. above, below: exclusive bounds.
    choices: allowed strings, or allowed members of a tuple. also: further allowed values, outside
    the range or the choices. empty: a tuple may be empty. optional: None is allowed.
    pattern: strings are regular expressions. absent: the value that a missing key stands for.
    needs: see `Needs`.
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
        """What was expected instead of an invalid value; None for a valid one."""
        if value is None:
            return None if self.optional else self.expected()
        if not self.many:
            return self._of_one(value)
        if not isinstance(value, (tuple, list)) or not (value or self.empty):
            return self.expected()
        return next((why for item in value if (why := self._of_one(item))), None)

    def fix(self, value: Any, default: Any = None) -> Any:
        """The closest allowed value, or None if none is close.

        Falls back to `default` for a value of the wrong type or beyond an exclusive bound.
        """
        if self.choices and isinstance(value, str):
            near = difflib.get_close_matches(value, self.choices, n=1, cutoff=0.5)
            return near[0] if near else None
        if self.choices and self.many and value:
            return self._fixed_items(value)
        if self._is_number(value) and not math.isnan(value) and not self.many:
            for bound, outside in (
                (self.low, self.low is not None and value < self.low),
                (self.high, self.high is not None and value > self.high),
            ):
                if outside and bound is not None and self.kind is not None:
                    return self.kind(bound)
        return default if default is not None and self.problem(default) is None else None

    def _fixed_items(self, items: Any) -> Any:
        """A tuple whose wrong items are replaced by close choices; None if one has none."""
        if not isinstance(items, (tuple, list)):
            return None
        fixed = tuple(item if self._of_one(item) is None else self.fix(item) for item in items)
        return None if None in fixed else fixed

    def _of_one(self, value: Any) -> str | None:
        if self.kind is None or any(
            value == alternative and _same(value, alternative) for alternative in self.also
        ):
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
    """A config dataclass field; `values` are those of its `Field`, the annotation gives `kind`."""
    return dataclasses.field(default=default, metadata={METADATA: values})


def fields_of(cls: type) -> dict[str, Field | type]:
    """The fields of a config dataclass by name; a nested config dataclass maps to its class."""
    hints = typing.get_type_hints(cls)
    declared = {}
    for spec in dataclasses.fields(cls):
        kind, values = hints[spec.name], dict(spec.metadata.get(METADATA, {}))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            declared[spec.name] = kind
            continue
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            members = [arm for arm in typing.get_args(kind) if arm is not type(None)]
            if len(members) == 1 and dataclasses.is_dataclass(members[0]):
                declared[spec.name] = typing.cast(type, members[0])  # an optional section
                continue
            values.setdefault("optional", len(members) < len(typing.get_args(kind)))
            kind = members[0] if len(members) == 1 else None
        if typing.get_origin(kind) is tuple:
            values["many"], kind = True, typing.get_args(kind)[0]
        declared[spec.name] = Field(kind if kind in _KINDS else None, **values)
    return declared


def check(key: str, field: Field, value: Any, default: Any = None) -> list[Problem]:
    """Checks one value; a problem gives the key, value, expected values and closest fix."""
    why = field.problem(value)
    if why is None:
        return []
    fix = field.fix(value, default)
    hint = "" if fix is None else f"; try --config.{key}={as_flag(fix)}"
    if fix is None and (own := getattr(field.choices, "of_your_own", "")):  # names of a registry
        hint = f". {own}"
    return [Problem((key,), f"{key}={_shown(value)}: expected {why}{hint}")]


def check_dataclass(cls: type, section: Any, where: str) -> list[Problem]:
    """Checks each field of a section from which a config dataclass will be built."""
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
        elif hasattr(field, "problems_of"):  # a registered member, which checks its own fields
            problems += [
                problem if isinstance(problem, Problem) else Problem((key,), problem)
                for problem in field.problems_of(value, key)
            ]
        else:
            problems += check_dataclass(field, value, key)
    for name in declared:
        if name not in section and name not in defaults:
            problems.append(Problem((f"{where}.{name}",), f"{where}.{name}: missing; set it"))
    return problems


def check_effect(config: Any, where: str) -> list[Problem]:
    """Finds fields, nested ones included, that differ from their default but have no effect."""
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
    """The problem that reports a value without effect."""
    back = "; leave it empty" if default in ("", ()) else f"; set it to {as_flag(default)}"
    return Problem((key,), f"{key}={_shown(value)} has no effect: {needs}{back}", idle=True)


def defaults_of(cls: type) -> dict[str, Any]:
    """Defaults of a dataclass by field name; fields without a default are left out."""
    defaults = {}
    for spec in dataclasses.fields(cls):
        if spec.default is not dataclasses.MISSING:
            defaults[spec.name] = spec.default
        elif spec.default_factory is not dataclasses.MISSING:
            defaults[spec.name] = spec.default_factory()
    return defaults


def as_flag(value: Any) -> str:
    """Formats a value as written after `--config.KEY=`."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(as_flag(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def lines(problems: Sequence[Problem]) -> str:
    """Joins all problems into one message, one line per problem."""
    texts = list(dict.fromkeys(problem.text for problem in problems))
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


def _same(value: Any, alternative: Any) -> bool:
    return isinstance(value, bool) == isinstance(alternative, bool)
