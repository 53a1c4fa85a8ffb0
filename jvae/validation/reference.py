"""Reference of all config keys (default, values, meaning): `--help` text, Markdown for the docs.

python -m jvae.main --config=optimus --help
python -m jvae.validation.reference > config.md
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models
from jvae.fields import Field, as_flag, defaults_of, fields_of
from jvae.latent.choice import Choice
from jvae.latent.densities import POSTERIORS
from jvae.latent.priors import PRIORS
from jvae.nn.backbone import BACKBONES, KEY, StackConfig
from jvae.registry import Registry
from jvae.validation import schema


def describe(config: ConfigDict) -> str:
    """All keys of a config, each with its value, allowed values and meaning."""
    lines = []
    for key, value in configs.flatten(config).items():
        field = model_field(config, key) if key.startswith("model.") else schema.field_of(key)
        values = f"\n      {field.expected()}" if field else ""
        meaning = f"\n      {field.help}" if field and field.help else ""
        lines.append(f"  --config.{key}={_shown(value)}{values}{meaning}")
    return "\n".join(lines)


BACKBONE = Field(str, "Name of the backbone; its other keys follow.", choices=BACKBONES.names())
# Registered members that can be selected by a field of a model config.
MEMBERS: dict[str, Registry[Any]] = {"prior": PRIORS, "posterior": POSTERIORS}


def model_field(config: ConfigDict, key: str) -> Field | None:
    """The field of a key such as "model.decoder.width"; None if the model does not have it."""
    kind: Any = models.family(config.model.family).config
    section = config.model
    *sections, name = key.split(".")[1:]
    for word in sections:
        kind, section = fields_of(kind).get(word), section.get(word, {})
        if kind is StackConfig and KEY in section:
            if name == KEY:
                return BACKBONE
            kind = BACKBONES[section[KEY]].config
        if kind is Choice and "kind" in section:
            members = MEMBERS[word]
            if name == "kind":
                return Field(
                    str, f"Kind of the {word}; its options follow.", choices=members.names()
                )
            kind = members[section["kind"]].options
            if not dataclasses.is_dataclass(kind):
                return None
        if not isinstance(kind, type):
            return None
    field = fields_of(kind).get(name)
    return field if isinstance(field, Field) else None


def reference() -> str:
    """Markdown: one table per section, family and part of a family."""
    base = configs.flatten(configs.base())
    parts = [_table("Top level", _rows("", schema.TOP, base))]
    for name, fields in schema.SECTIONS.items():
        parts.append(_table(f"`{name}`", _rows(f"{name}.", fields, base)))
    phase_fields = {name: schema.PHASE[name] for name in ("share", "patience")}
    parts.append(_table("`phases.NAME`", _rows("phases.NAME.", phase_fields, {})))
    parts.append("A phase may also hold keys of `objective`, `optim` and `noise`.")
    shared: dict[str, type] = {}
    for name, family in models.FAMILIES.items():
        parts.append(_table(f"`model` of family `{name}`", _of_class(family.config, shared)))
    shared |= {kind.config.__name__: kind.config for _, kind in BACKBONES.items()}
    shared.pop(StackConfig.__name__, None)
    seen: set[str] = set()
    while todo := [name for name in shared if name not in seen]:  # parts can have parts
        for name in todo:
            seen.add(name)
            parts.append(_table(f"`{name}`", _of_class(shared[name], shared)))
    return "\n\n".join(parts) + "\n"


Row = tuple[str, str, str, str]


def _rows(prefix: str, fields: dict[str, Field], base: Mapping[str, object]) -> Iterator[Row]:
    for name, field in fields.items():
        key = prefix + name
        default = _shown(base.get(key, field.absent)) if key in base or field.absent else ""
        yield key, default, field.expected(), field.help


def _of_class(cls: type, shared: dict[str, type]) -> Iterator[Row]:
    defaults = defaults_of(cls)
    for name, field in fields_of(cls).items():
        if field is StackConfig:
            options = ", ".join(
                f"{backbone} (`{kind.config.__name__}`)" for backbone, kind in BACKBONES.items()
            )
            yield name, "", "a section with a key `backbone`", f"Fields by backbone: {options}."
        elif field is Choice:
            kinds = MEMBERS[name].items()
            shared |= {kind.options.__name__: kind.options for _, kind in kinds if _has_keys(kind)}
            options = ", ".join(
                f"{member} (`{kind.options.__name__}`)" if _has_keys(kind) else member
                for member, kind in kinds
            )
            default = defaults[name].kind
            yield name, default, "a section with a key `kind`", f"Options by kind: {options}."
        elif not isinstance(field, Field):
            shared[field.__name__] = field
            yield name, "", f"a section, `{field.__name__}`", ""
        else:
            meaning = field.help
            if field.needs:
                meaning += f" No effect where {field.needs.text}."
            default = _shown(defaults[name]) if name in defaults else ""
            yield name, default, field.expected(), meaning


def _has_keys(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind.options)


def _table(title: str, rows: Iterator[Row]) -> str:
    lines = [f"## {title}", "", "| key | default | values | meaning |", "| --- | --- | --- | --- |"]
    for key, default, values, meaning in rows:
        cells = (f"`{key}`", f"`{default}`" if default else "", values, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, (tuple, list)) and any(isinstance(item, (tuple, list)) for item in value):
        return repr(value)
    return as_flag(value)


if __name__ == "__main__":
    print(reference(), end="")
