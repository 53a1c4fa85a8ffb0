"""Loads configs by name or path, applies typed command-line overrides, stores them as JSON.

    --config=optimus:base                 a shipped config by name, preset `base`
    --config=configs/optimus.py:base      the same config by path
    --config=mine.py                      your own file; the default preset is `tiny`
    --config.optim.lr=3e-4                one value; its type is that of the default

A config file defines `get_config(arg: str) -> ConfigDict`, where `arg` is the text after the colon,
see `preset`. It can import files in its directory with `from . import common`. Values are numbers,
strings, booleans, None, tuples of these, and sections; callables are not allowed.
"""

import copy
import difflib
import hashlib
import importlib
import json
import math
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import jvae
from jvae import renamed
from jvae.errors import ConfigError
from jvae.fields import Field, check_dataclass, fields_of, lines

DEFAULT_PRESET = "tiny"
SCHEMA = 3  # version of stored configs and parameters; `jvae.runs.migrations` opens older ones
# Keys of older configs that are no longer read.
RETIRED = (
    "train.collapse_kl",  # replaced by one rule, `jvae.evals.latent.collapse_reasons`
    "evals.few_labels",  # total number of labels; `evals.per_label` counts examples per label
)
ABSENT = "(absent)"  # what `diff` reports for a key that only one config has


def shipped_dir() -> Path:
    """Directory of the shipped configs: in the installed package, or next to it in a checkout."""
    package = Path(jvae.__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load(spec: str) -> ConfigDict:
    """Loads and locks a config: `optimus:base`, `configs/optimus.py:base` or `mine.py`.

    A path to a shipped config (`configs/optimus.py`) works even if the file does not exist, so the
    same command also runs outside a checkout.

    Renamed keys that the file sets are accepted, with a warning.

    Raises: ConfigError if the config is not found, or its file does not define `get_config`, return
      a ConfigDict, or set a renamed key of a locked config.
    """
    where, _, arg = spec.partition(":")
    path = _find(where)
    module = _import(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(
            f"{path}: a config file must define get_config(arg) returning a ConfigDict"
        )
    try:
        cfg = module.get_config(arg or DEFAULT_PRESET)
    except (AttributeError, KeyError) as error:
        if text := renamed.hint(error):
            raise ConfigError(f"{path}: {text}") from error
        raise
    if not isinstance(cfg, ConfigDict):
        raise ConfigError(
            f"{path}: get_config returned {type(cfg).__name__}, expected a ConfigDict"
        )
    _separate(cfg)
    renamed.update(cfg, renamed.warn)
    return cfg.lock()


def shipped_values(keys: Iterable[str]) -> dict[str, list[Any]]:
    """Values of the given dotted keys across all presets of the shipped configs."""
    values: dict[str, list[Any]] = {key: [] for key in keys}
    if not values:
        return values
    for file in sorted(shipped_dir().glob("*.py")):
        module = _import(file)
        for name in getattr(module, "PRESETS", ()):
            flat = flatten(module.get_config(name))
            for key, seen in values.items():
                if key in flat:
                    seen.append(flat[key])
    return values


def preset(arg: str, presets: Iterable[str], **options: str) -> tuple[str, dict[str, str]]:
    """Splits the argument of `get_config`, such as "base,data=yelp", into preset and options.

    Args:
      presets: allowed first words; without a first word, the preset is `tiny`.
      options: every option with its default.
    Raises: ConfigError for an unknown preset or option, suggesting the closest match.
    """
    words = [word for word in arg.split(",") if word]
    name = DEFAULT_PRESET if not words or "=" in words[0] else words.pop(0)
    if name not in (names := list(presets)):
        raise ConfigError(
            f"unknown preset {name!r}{nearest(name, names)}; presets: {', '.join(names)}"
        )
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise ConfigError(
                f"unknown option {word!r} of preset {name!r}{nearest(key, options)}; "
                f"options: {', '.join('='.join(item) for item in options.items()) or 'none'}"
            )
        options[key] = value
    return name, options


def choice(options: dict[str, str], name: str, values: Sequence[str]) -> str:
    """The value of a preset option, which must be one of `values`. Raises: ConfigError."""
    value = options[name]
    if value not in values:
        raise ConfigError(
            f"option {name}={value}{nearest(value, values)}; expected one of {', '.join(values)}"
        )
    return value


def from_argv(
    argv: Sequence[str],
    saved: Callable[[list[str]], ConfigDict] | None = None,
    configure: Callable[[ConfigDict, list[str], list[str]], ConfigDict] | None = None,
) -> tuple[ConfigDict | None, list[str]]:
    """Splits a command line into its config (`--config`, `--config.key`) and other arguments.

    Args:
      saved: called with all other arguments if there are overrides but no `--config`; the overrides
        apply to the config it returns.
      configure: applies overrides to the config that `--config` names; called with that config, the
        overrides ("--config.key=value") and all other arguments. The default is `apply_overrides`.
    Returns: the config with its overrides, or None without either; and all other arguments.
    Raises: ConfigError.
    """
    spec, overrides, rest = None, [], []
    waiting = list(argv)
    while waiting:
        flag, equals, value = waiting[0].partition("=")
        word = waiting.pop(0)
        if flag.lstrip("-").split(".")[0] != "config" or not flag.startswith("-"):
            rest.append(word)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{flag} needs a value: write {flag}=<value>")
            value = waiting.pop(0)
        name = flag.lstrip("-")
        if name == "config":
            spec = value
        else:
            overrides.append(f"--{name}={value}")
    if spec is None and overrides:
        if saved is None:
            raise ConfigError(f"{overrides[0]} given without a config: add --config=<name or path>")
        return apply_overrides(saved(rest), overrides), rest
    if spec is None:
        return None, rest
    if configure is not None:
        return configure(load(spec), overrides, rest), rest
    return apply_overrides(load(spec), overrides), rest


def apply_overrides(cfg: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Returns a locked copy of `cfg` with overrides such as "--config.a.b=value" or "a.b=value".

    The default determines the type. Booleans are true, false, 1 or 0; tuples are written 1,2,3; an
    integer is accepted for a float; `none` means None unless the default is a string. If the
    default is None, the type is guessed from the text. The same holds for options of a registered
    member of the model, such as `model.prior.components` with `model.prior.kind=gmm`, whose types
    only the member knows. Renamed keys and values are accepted, with a warning.

    Raises: ConfigError for an unknown key, with the closest match and the keys of that section, or
      for a value of the wrong type.
    """
    cfg = copy.deepcopy(cfg)
    _separate(cfg)
    renamed.update(cfg, renamed.warn)
    for override in overrides:
        key, equals, text = override.removeprefix("--").removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"{override!r} has no value: write --config.{key}=<value>")
        if (new := renamed.key(key, cfg)) != key:
            renamed.warn(key, new)
            key = new
        if (new := renamed.value(key, text)) != text:
            renamed.warn(f"{key}={text}", f"{key}={new}")
            text = new
        section, name, member = _section_of(cfg, key)
        old: Any = None if member else section[name]
        if isinstance(old, ConfigDict):
            raise ConfigError(
                f"--config.{key} is a section, set one of its keys: "
                + ", ".join(f"{key}.{child}" for child in sorted(old))
            )
        try:
            value = parse(text, old, type(None) if member else section.get_type(name))
            with section.unlocked(), section.ignore_type() if member else nullcontext():
                section[name] = value
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--config.{key}={text}: {error} (the default is {old!r})") from None
        renamed.update(cfg, renamed.warn)  # `kind` may decide whose options the earlier ones are
    return cfg.lock()


def flatten(cfg: ConfigDict) -> dict[str, Any]:
    """Values by dotted key, sorted. Lists become tuples; an empty section is a value, {}."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, section: ConfigDict) -> None:
        for name in sorted(section):
            value = section[name]
            if isinstance(value, ConfigDict) and len(value):
                walk(f"{prefix}{name}.", value)
            else:
                flat[prefix + name] = {} if isinstance(value, ConfigDict) else _tuples(value)

    walk("", cfg)
    return flat


def to_json(cfg: ConfigDict) -> str:
    """The config as JSON text with sorted keys; equal configs give equal text.

    Raises: ConfigError naming the key of a value that JSON cannot represent.
    """
    for key, value in flatten(cfg).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"config.{key} = {value!r}: expected a number, string, boolean, None or a tuple"
            ) from None
    return json.dumps({"schema": SCHEMA, **cfg.to_dict()}, indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads a config written by `to_json`, and locks it. Lists come back as tuples, renamed keys
    and values under their current names.

    Raises: ConfigError if the text is not a JSON object, a key is not a valid name, or a newer jvae
      wrote it.
    """
    tree = _read_json(text)
    schema = tree.pop("schema", 1)
    if schema not in range(1, SCHEMA + 1):
        raise ConfigError(
            f"stored config has schema {schema!r}; this jvae reads 1 to {SCHEMA}: update jvae"
        )
    try:
        cfg = ConfigDict(_tuples(tree), convert_dict=True)
        renamed.update(cfg)
        return cfg.lock()
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"stored config is not JSON: {error}") from None


def schema_of(text: str) -> int:
    """The schema version of a stored config.

    Raises: ConfigError if the text is not a JSON object.
    """
    return _read_json(text).get("schema", 1)


def _read_json(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"stored config is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError("stored config is not a JSON object")
    return tree


def base() -> ConfigDict:
    """The sections that all configs share, with their default values."""
    return _import(shipped_dir() / "common.py").base()


def stored(text: str) -> ConfigDict:
    """Reads the config of a run that an older jvae may have written; see `from_json`.

    Shared keys that it lacks get their defaults, which reproduce the behaviour before the key was
    introduced. Retired keys are dropped.

    Raises: ConfigError as `from_json` does, or naming a shared key whose value has the wrong type.
    """
    cfg = from_json(text).unlock()
    _check_like_base(cfg)
    if schema_of(text) < 3:
        _name_backbones(cfg)
    for key in RETIRED:
        section, _, name = key.rpartition(".")
        if section in cfg and name in cfg[section]:
            del cfg[section][name]
    keys = flatten(cfg).keys() | set(cfg)  # a section may be empty in one config but not in another
    for key, value in flatten(base()).items():
        if key not in keys:
            *sections, name = key.split(".")
            parent = cfg
            for section in sections:
                if section not in parent:
                    parent[section] = ConfigDict()
                parent = parent[section]
            parent[name] = ConfigDict() if value == {} else value
    return cfg.lock()


def _name_backbones(cfg: ConfigDict) -> None:
    """Sets `backbone` keys, which schemas 1 and 2 implied by the stack's role and fields."""
    model = cfg.get("model")
    if not isinstance(model, ConfigDict):
        return
    for role, transformer in (("encoder", "bert"), ("decoder", "gpt2")):
        stack = model.get(role)
        if isinstance(stack, ConfigDict) and "backbone" not in stack:
            backbone = "lstm" if "hidden" in stack else "t5" if "buckets" in stack else transformer
            stack.backbone = backbone
    if {"use_memory", "use_embedding"} <= set(model) and "use_psa" not in model:
        model.tokens = model.get("tokens", 0)


def _check_like_base(cfg: ConfigDict) -> None:
    """Raises ConfigError unless each value has the same type as in the base config."""

    def kind(value: Any) -> str:
        if isinstance(value, ConfigDict):
            return "a section"
        kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
        return kinds.get(type(value), "a list")

    def walk(prefix: str, section: ConfigDict, base: ConfigDict) -> None:
        for name in base:
            if name not in section or section[name] is None or base[name] is None:
                continue
            have, want = kind(section[name]), kind(base[name])
            if have != want:
                raise ConfigError(f"stored config: {prefix}{name} is {have}, expected {want}")
            if want == "a section":
                walk(f"{prefix}{name}.", section[name], base[name])

    walk("", cfg, _import(shipped_dir() / "common.py").base())
    model = cfg.get("model")
    if not isinstance(model, ConfigDict) or not isinstance(model.get("family"), str):
        raise ConfigError("stored config: model.family is missing; expected the name of a family")
    for side in ("encoder", "decoder"):
        if side in model and not isinstance(model[side], ConfigDict):
            raise ConfigError(f"stored config: model.{side} is not a section")
    if not isinstance(cfg.get("name", ""), str):
        raise ConfigError("stored config: name is not a text")


def diff(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose value or type differs, with (old, new); ABSENT if one lacks the key."""
    a, b = flatten(old), flatten(new)
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted(a.keys() | b.keys())}
    return {key: pair for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}


def fingerprint(cfg: ConfigDict) -> str:
    """A hash of the config, 12 hexadecimal digits, the same on every machine."""
    return hashlib.sha256(to_json(cfg).encode()).hexdigest()[:12]


def _find(where: str) -> Path:
    path = Path(where).expanduser()
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    shipped = shipped_dir()
    by_name = path.suffix == "" and path.name == where
    if by_name or path.parts == ("configs", path.name):
        candidate = shipped / f"{path.name.removesuffix('.py')}.py"
        if candidate.is_file():
            return candidate
    names = sorted(
        file.stem for file in shipped.glob("*.py") if "def get_config" in file.read_text()
    )
    raise ConfigError(
        f"no config {where!r}{nearest(path.stem, names)}; "
        f"give the path of a .py file, or one of: {', '.join(names) or f'(none in {shipped})'}"
    )


def _import(path: Path) -> types.ModuleType:
    """Imports a config file as a module of a package for its directory, so `from . import` works.

    Every call executes the files again, so edits since an earlier load take effect.
    """
    package = "jvae_configs_" + hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(path.parent)]
    importlib.invalidate_caches()
    return importlib.import_module(f"{package}.{path.stem}")


def _separate(cfg: ConfigDict) -> None:
    """Copies sections that are in several places, so that setting one leaves the others alone."""
    seen = set()

    def walk(section: ConfigDict) -> None:
        seen.add(id(section))
        for name in section:
            child = section[name]
            if not isinstance(child, ConfigDict):
                continue
            if id(child) in seen:
                child = copy.deepcopy(child)
                with section.unlocked():
                    section[name] = child
            walk(child)

    walk(cfg)


def _section_of(cfg: ConfigDict, key: str) -> tuple[ConfigDict, str, bool]:
    """The section and last word of a key, and whether it is an option of a registered member."""
    parent, node, prefix = cfg, cfg, "config"
    *sections, last = words = key.split(".")
    for at, word in enumerate(words):
        if at == len(sections) and _names_member(sections, node) and word != "kind":
            return node, last, True
        if not isinstance(node, ConfigDict):
            raise ConfigError(f"unknown config key {key!r}: {prefix} is a value, not a section")
        if word not in node:
            paths = list(flatten(cfg))
            # A correct name in the wrong section is as likely as a misspelling.
            moved = [path for path in paths if path.rpartition(".")[2] == key.rpartition(".")[2]]
            near = f"; did you mean {moved[0]!r}?" if moved else _nearest_key(key, paths, cfg)
            raise ConfigError(
                f"unknown config key {key!r}{near}; keys of {prefix}: {', '.join(sorted(node))}"
            )
        parent, node, prefix = node, node[word], f"{prefix}.{word}"
    return parent, last, False


def _nearest_key(key: str, paths: Sequence[str], cfg: ConfigDict) -> str:
    """`nearest` among keys and their old names, which it replaces by the current ones."""
    current = {path: path for path in paths} | renamed.old_keys(paths, cfg)
    match = difflib.get_close_matches(key, current, n=1, cutoff=0.5)
    return nearest(current[match[0]], paths) if match else ""


def _names_member(sections: Sequence[str], section: Any) -> bool:
    """Whether a model section selects a registered member; its options are siblings of `kind`."""
    return len(sections) > 1 and sections[0] == "model" and "kind" in section


def parse(text: str, old: Any, kind: type) -> Any:
    """Parses the text of a flag whose default is `old`, of type `kind`.

    Raises: ValueError stating what was expected.
    """
    if text.lower() == "none" and not isinstance(old, str):
        return None
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("expected true or false")
        return text.lower() in ("true", "1")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("expected an integer") from None
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError("expected a number") from None
        if not math.isfinite(number):
            raise ValueError("expected a finite number")
        return number
    if kind in (tuple, list):
        words = [word.strip() for word in text.split(",")]
        like = old[0] if old else None
        return kind(parse(word, like, type(like)) for word in words if word)
    if kind is str:
        return text
    if kind is type(None):
        for guess in (int, float, bool):
            try:
                return parse(text, None, guess)
            except ValueError:
                continue
        return text
    raise ValueError(f"a value of type {kind.__name__} cannot be set by flag")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A "did you mean" suffix for a message; empty if nothing is close."""
    match = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(child) for name, child in value.items()}
    return tuple(_tuples(child) for child in value) if isinstance(value, (list, tuple)) else value


def dataclass_from(cls: type, section: Any, where: str) -> Any:
    """Builds a (nested) config dataclass from a config section.

    Raises: ConfigError naming the key of every invalid value.
    """
    if problems := check_dataclass(cls, section, where):
        raise ConfigError(lines(problems))
    values = {}
    for name, kind in fields_of(cls).items():
        if name not in section:
            continue
        value, key = section[name], f"{where}.{name}"
        if isinstance(kind, Field):
            values[name] = value
        elif hasattr(kind, "from_section"):
            values[name] = kind.from_section(value, key)
        else:
            values[name] = dataclass_from(kind, value, key)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
