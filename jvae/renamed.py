"""Old names of config keys and values, which stored runs and users' own files may still have.

`jvae.config` applies them to stored configs, to overrides and to config files. Other code that
looks for a key among overrides asks for its current name, see `key`.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

log = logging.getLogger(__name__)
_PHASE = re.compile(r"phases\.[^.]+\.")  # a phase may set keys of other sections
# How ConfigDict names the key that a locked config lacks.
_MISSING = re.compile(r"""^['"]*(?:Key "|\\?')(\w+)""")


class Renamed(NamedTuple):
    """A key, or a section with all its keys, that has a new name in the same section.

    only: a key and the values of it for which the name is old; for any other value, the name may be
      one of a member outside the package.
    """

    old: str
    new: str
    only: tuple[str, ...] | None = None


_ROTARY = ("llama", "mistral", "qwen2", "qwen3")
KEYS = (
    Renamed("objective.rec", "objective.rec_reduce"),
    Renamed("objective.kl_floor", "objective.free_bits"),
    Renamed("objective.floor", "objective.free_bits_nats"),
    Renamed("model.posterior.least", "model.posterior.min_kl", ("model.posterior.kind", "bn")),
    Renamed("model.warm_up", "model.annealing", ("model.family", "sri", "sri_transformer")),
    Renamed("model.vary", "model.layerwise_projection", ("model.family", "adavae")),
    Renamed("model.ltp", "model.product_order", ("model.family", "della")),
    Renamed("model.links", "model.layer_latents", ("model.family", "della")),
    *(
        Renamed(
            f"model.{role}.original",
            f"model.{role}.original_positions",
            (f"model.{role}.backbone", *_ROTARY),
        )
        for role in ("encoder", "decoder")
    ),
)
VALUES = {"evals.preset": {"headline": "full"}}  # new value by key and old value


def key(old: str, config: ConfigDict) -> str:
    """The current name of a dotted key of this config."""
    start = match.group() if (match := _PHASE.match(old)) else ""
    rest = old[len(start) :]
    for entry in _of(config):
        if f"{rest}.".startswith(f"{entry.old}."):
            return start + entry.new + rest[len(entry.old) :]
    return old


def old_keys(paths: Iterable[str], config: ConfigDict) -> dict[str, str]:
    """The dotted keys among `paths`, which the config has, by their old names."""
    old = {}
    for path in paths:
        start = match.group() if (match := _PHASE.match(path)) else ""
        rest = path[len(start) :]
        for entry in _of(config):
            if f"{rest}.".startswith(f"{entry.new}."):
                old[start + entry.old + rest[len(entry.new) :]] = path
    return old


def value(name: str, old: str) -> str:
    """The current name of a value of the key `name`."""
    return VALUES.get(name, {}).get(old, old)


def update(config: ConfigDict, report: Callable[[str, str], None] | None = None) -> None:
    """Renames the keys and values of a config in place; an old key replaces the value of the new.

    Args:
      report: called with the old and the new name of each.
    """
    phases = config.get("phases")
    starts = ["", *(f"phases.{name}." for name in phases)] if _is_section(phases) else [""]
    for start in starts:
        for entry in _of(config):
            section, name = _find(config, start + entry.old)
            if section is None:
                continue
            with config.unlocked(), section.ignore_type():
                section[entry.new.rpartition(".")[2]] = section[name]
                del section[name]
            if report:
                report(start + entry.old, start + entry.new)
    for path, values in VALUES.items():
        section, name = _find(config, path)
        if section is not None and (old := section[name]) in values:
            with config.unlocked():
                section[name] = values[old]
            if report:
                report(f"{path}={old}", f"{path}={values[old]}")


@functools.cache
def warn(old: str, new: str) -> None:
    """Logs that a name was replaced, once per process."""
    log.warning("%s is now %s", old, new)


def hint(error: Exception) -> str:
    """What a key is called now whose old name a locked config rejected; empty for other errors."""
    match = _MISSING.match(str(error))
    word = match.group(1) if match else ""
    return ", ".join(
        f"{entry.old} is now {entry.new}"
        for entry in KEYS
        if word and entry.old.rpartition(".")[2] == word
    )


def _of(config: ConfigDict) -> list[Renamed]:
    def applies(only: tuple[str, ...] | None) -> bool:
        if only is None:
            return True
        section, name = _find(config, only[0])
        return section is not None and section[name] in only[1:]

    return [entry for entry in KEYS if applies(entry.only)]


def _find(config: ConfigDict, path: str) -> tuple[ConfigDict | None, str]:
    """The section that holds a dotted key (None without such a key), and the key's last word."""
    *sections, name = path.split(".")
    for word in sections:
        if word not in config or not _is_section(config[word]):
            return None, name
        config = config[word]
    return (config if name in config else None), name


def _is_section(value: object) -> bool:
    return isinstance(value, ConfigDict)
