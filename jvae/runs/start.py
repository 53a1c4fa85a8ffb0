"""Takes settings from the pretrained folders that `init.encoder` and `init.decoder` name.

Sizes come from config.json, tokenizers from the files next to it, and the pooling of a sentence
encoder from 1_Pooling. Flags may add to these but must not contradict sizes. Training settings
(dropout, number types, latents) are not taken. A run that has started takes all of this from its
own config and no longer needs the folders.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models, renamed
from jvae.data import tokenizers
from jvae.errors import ConfigError, WeightsError
from jvae.fields import Field, as_flag, defaults_of, fields_of
from jvae.models import Family
from jvae.nn import lora
from jvae.nn.backbone import BACKBONES, KEY
from jvae.nn.config import CHOICES
from jvae.pretrained import backbones, files, parts
from jvae.pretrained.files import Checkpoint
from jvae.pretrained.layouts import LAYOUTS
from jvae.pretrained.parts import PretrainedPart
from jvae.runs import own_text, workdir

log = logging.getLogger(__name__)

ROLES = ("encoder", "decoder")
SHARED = "model.share_embedding"
MODULES, POOLING = "modules.json", "1_Pooling"
LAST = "lasttoken"
# Poolings of sentence-transformers and the corresponding names in a model, best first.
POOLS = {"mean": ("mean",), "cls": ("first", "cls"), "max": ("max",), LAST: ("last",)}


class Source(NamedTuple):
    """Settings read from a folder. values: for the section `model.<role>`."""

    role: str
    name: str
    values: dict[str, Any]


def configure(
    config: ConfigDict, overrides: Sequence[str], folder: Path | None = None
) -> ConfigDict:
    """Returns a locked copy of a config with flags and settings of its pretrained folders applied.

    Args:
      overrides: as in `jvae.config.apply_overrides`. folder: of the run.
    Raises: ConfigError for a flag that contradicts a folder, a kind of model without a matching
      backbone, or a part that the family cannot use; WeightsError for a folder that cannot be read.
    """
    if config.name == own_text.NAME:
        return _for_own_text(config, overrides, folder)
    # Whether two stacks share an embedding determines which folders a model can read.
    early = [flag for flag in overrides if _key(flag).startswith(("init.", SHARED))]
    late = [flag for flag in overrides if flag not in early]
    config = configs.apply_overrides(config, early)
    init = config.get("init", {})
    named = {role: str(init[role]) for role in ROLES if init.get(role)}
    if not named:
        return configs.apply_overrides(config, late)
    draft = ConfigDict(config.to_dict())
    family = models.family(draft.model.family)
    if saved := _begun(folder, named):
        _take_from_run(draft, saved, named)
        family.adjust(draft.model)
        return configs.apply_overrides(draft, late)
    sources, set_here = [], {}
    for role, name in named.items():
        old = draft.model.get(role)
        source = _source(role, name, None if old is None else old.get(KEY))
        set_here |= _own_values(old, source)
        _take(draft, family, source)
        sources.append(source)
    wanted(draft)
    notes = [_described(source) for source in sources] + family.adjust(draft.model)
    if "encoder" in named:
        hint = pooling(files.finder(named["encoder"]))
        pool_flags = [flag for flag in late if _key(flag) == "model.pool"]
        notes += _take_pool(draft, family, named["encoder"], hint, pool_flags)
        if hint == LAST and not any(_key(flag) == "model.causal_encoder" for flag in late):
            notes += _take_direction(draft)
    config = configs.apply_overrides(draft, late)
    flagged = {renamed.key(_key(flag), config) for flag in late}
    _check(config, sources, {k: v for k, v in set_here.items() if k not in flagged})
    for note in notes:
        log.info(note)
    return config


def _for_own_text(config: ConfigDict, overrides: Sequence[str], folder: Path | None) -> ConfigDict:
    """The config that `jvae.runs.own_text` chooses, with flags; if the folder already holds a run,
    the config of that run.
    """
    if folder is not None and workdir.checkpoints(folder):
        return configs.apply_overrides(workdir.saved_config(folder), overrides)
    of_data = [flag for flag in overrides if _key(flag).startswith("data.")]
    of_steps = [override for override in overrides if _key(override) == "train.steps"]
    steps = configs.apply_overrides(config, of_steps).train.steps if of_steps else None
    data = configs.apply_overrides(config, of_data).data
    own_vocab = any(_key(flag) == "data.vocab" for flag in of_data)
    choice = own_text.choose(own_text.read(data, data.vocab if own_vocab else None), steps)
    draft = configs.load(choice.preset).unlock()
    draft.name = config.name
    chosen = [f"{key}={_as_text(value)}" for key, value in choice.values.items()]
    flags = {_key(flag): flag.partition("=")[2] for flag in overrides}
    for line in own_text.describe(choice, flags):
        log.info("%s: %s", own_text.NAME, line)
    return configs.apply_overrides(configs.apply_overrides(draft, chosen), overrides)


def _as_text(value: object) -> str:
    return repr(value) if isinstance(value, float) else as_flag(value)


def wanted(config: ConfigDict) -> list[tuple[PretrainedPart, str]]:
    """The parts of a model that start from pretrained weights, and their sources.

    Raises: ConfigError for a part that the family cannot use.
    """
    family = config.model.family
    names = {role: str(config.init[role]) for role in ROLES if config.init[role]}
    parts = {part.key: part for part in models.family(family).parts(config.model)}
    for key in names:
        if key not in parts:
            options = ", ".join(f"init.{k}" for k in parts) or "none"
            stacks = ", ".join(
                f"{role} {config.model[role][KEY]}" for role in ROLES if role in config.model
            )
            raise ConfigError(
                f"init.{key} is set, but {family} loads no such part; known: {options} ({stacks})"
            )
    return [(part, names[key]) for key, part in parts.items() if key in names]


def _key(override: str) -> str:
    return override.removeprefix("--").removeprefix("config.").partition("=")[0]


def _begun(folder: Path | None, named: Mapping[str, str]) -> ConfigDict | None:
    """The config of the run in a folder, if it was started from the same pretrained folders."""
    if folder is None or not workdir.checkpoints(folder):
        return None
    if not (folder / workdir.CONFIG).is_file():
        return None
    saved = workdir.saved_config(folder)
    same = all(saved.init.get(role, "") == named.get(role, "") for role in ROLES)
    return saved if same else None


def _take_from_run(draft: ConfigDict, saved: ConfigDict, named: Mapping[str, str]) -> None:
    for role in named:
        if role not in saved.model:
            continue
        current = draft.model.get(role) or draft.model.decoder
        choices = {key: value for key, value in current.items() if key in CHOICES}
        section = saved.model[role].to_dict()
        draft.model[role] = ConfigDict(section | {k: v for k, v in choices.items() if k in section})
    for role in ROLES:
        draft.data[f"{role}_tokenizer"] = saved.data[f"{role}_tokenizer"]
    if "encoder" in named:
        for key in ("pool", "causal_encoder"):
            if key in saved.model:
                draft.model[key] = saved.model[key]


def _take(draft: ConfigDict, family: Family, source: Source) -> None:
    """Copies sizes and tokenizer of a folder into a config."""
    role, name = source.role, source.name
    if role in fields_of(family.config):
        old = draft.model.get(role) or draft.model.decoder
        draft.model[role] = ConfigDict(_section(old, source))
    if not files.is_local(name) or tokenizers.has_tokenizer(Path(name).expanduser()):
        draft.data[f"{role}_tokenizer"] = name
        if role == "decoder" and parts.one_embedding(draft.model):
            draft.data.encoder_tokenizer = name


def _source(role: str, name: str, backbone: str | None) -> Source:
    """Reads the settings of a folder.

    Args:
      backbone: backbone in the config, for folders that do not name theirs.
    """
    try:
        stated = files.config_of(name)
    except WeightsError as error:
        raise WeightsError(f"init.{role}: {error}") from None
    if isinstance(stated.get("model"), dict):
        raise ConfigError(f"init.{role}={name} is a model of jvae; start from it with init.model")
    kinds = {layout.files.name: key for key, layout in LAYOUTS.items()}
    kind = stated.get("model_type")
    if kind is None and backbone is not None and backbone in LAYOUTS:
        kind = LAYOUTS[backbone].files.name
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"init.{role}={name}: its {files.CONFIG} says model_type {kind!r}, which no backbone "
            f"reads; supported: {', '.join(sorted(kinds))}"
        )
    layout = LAYOUTS[kinds[kind]].files
    sizes = backbones.sizes(layout, Checkpoint(name, stated, {}, False, ()))
    sizes.pop("vocab", None)  # taken from the tokenizer; there may be rows without a token
    return Source(role, name, {KEY: kinds[kind], **sizes})


def _section(old: ConfigDict, source: Source) -> Mapping[str, object]:
    """A section with the sizes of a folder; other values come from the config or the defaults."""
    values = old.to_dict()
    if values.get(KEY) != source.values[KEY]:
        kind = BACKBONES[source.values[KEY]].config
        fields = fields_of(kind)
        plain = {key: value for key, value in defaults_of(kind).items() if key != lora.NAME}
        values = plain | {key: value for key, value in values.items() if key in fields}
    return values | source.values | {"vocab": 0}


def _check(
    config: ConfigDict, sources: Sequence[Source], file_values: Mapping[str, object]
) -> None:
    """Raises: ConfigError naming every user-set value that a folder contradicts.

    Args:
      file_values: values of the config file that differ from a shipped config's, by key.
    """
    wrong = []
    for source in sources:
        section = f"model.{source.role}"
        for field, value in source.values.items():
            key = f"{section}.{field}"
            have = file_values.get(key, config.model[source.role][field])
            if not _same(have, value):
                flag = f"{key} in the config file is " if key in file_values else f"--config.{key}="
                wrong.append(
                    f"{flag}{as_flag(have)}, init.{source.role}={source.name} has {as_flag(value)}"
                )
    if wrong:
        raise ConfigError(
            f"{'; '.join(wrong)}. Sizes come from the folder's {files.CONFIG}; remove yours"
        )


def _same(have: Any, value: Any) -> bool:
    return math.isclose(have, value) if isinstance(value, float) else have == value


def _own_values(old: ConfigDict | None, source: Source) -> dict[str, object]:
    """Sizes in a section that contradict its folder and that no shipped config has. The user must
    have set these in their own config file; all others come from a preset.
    """
    if old is None or old.get(KEY) != source.values[KEY]:
        return {}
    keys = {
        f"model.{source.role}.{field}": old[field]
        for field, value in source.values.items()
        if field in old and not _same(old[field], value)
    }
    shipped = configs.shipped_values(keys)
    return {key: value for key, value in keys.items() if value not in shipped[key]}


def _described(source: Source) -> str:
    sizes = dict(source.values)
    backbone = sizes.pop(KEY)
    text = ", ".join(f"{key} {as_flag(value)}" for key, value in sizes.items())
    return f"init.{source.role}: model.{source.role} is the {backbone} of {source.name}: {text}"


def _take_pool(
    draft: ConfigDict, family: Family, name: str, hint: str | None, flags: Sequence[str]
) -> list[str]:
    """Sets the pooling that the sentence encoder in a folder was trained with.

    Args:
      hint: see `pooling`.
      flags: the flags that set `model.pool`.
    Returns: messages about the choice.
    """
    field = fields_of(family.config).get("pool")
    if hint is None or not isinstance(field, Field):
        return []
    fitting = [pool for pool in POOLS.get(hint, ()) if pool in field.choices]
    pool = draft.model.get("pool")
    trained = f"{name} was trained with {hint} pooling"
    if flags:
        pool = flags[-1].partition("=")[2]
        return [] if pool in fitting else [f"init.encoder: {trained}; model.pool={pool} is kept"]
    if not fitting:
        return [f"init.encoder: {trained}, which {draft.model.family} does not have: pool={pool}"]
    if pool in fitting:
        return []
    draft.model.pool = fitting[0]
    return [f"init.encoder: {trained}, so model.pool is {fitting[0]} and not {pool}"]


def _take_direction(draft: ConfigDict) -> list[str]:
    """Lets a decoder that became a sentence encoder read as it was trained, forwards.

    Returns: messages about the choice.
    """
    decodes = "decode" in BACKBONES[draft.model.encoder[KEY]].abilities
    if not decodes or draft.model.get("causal_encoder") is not False:
        return []
    draft.model.causal_encoder = True
    return ["init.encoder: its tokens attend to earlier ones only, as in its training"]


def pooling(find: Callable[[str], Path | None]) -> str | None:
    """The pooling of a sentence-transformers folder; None if it names none or several.

    Raises: WeightsError for a file that cannot be read.
    """
    modules = find(MODULES)
    if modules is None:
        return None
    path = find(f"{_pooling_folder(modules)}/{files.CONFIG}")
    if path is None:
        return None
    stated = files.read_json(path)
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, on in stated.items()
        if key.startswith("pooling_mode_") and on is True
    }
    if isinstance(mode := stated.get("pooling_mode"), str):
        modes = {mode}
    return modes.pop() if len(modes) == 1 else None


def _pooling_folder(modules: Path) -> str:
    """The folder of the pooling layer, by modules.json. Raises: WeightsError."""
    listed = files.read_json(modules, list)
    for module in (entry for entry in listed if isinstance(entry, dict)):
        kind, path = (str(module.get(key, "")) for key in ("type", "path"))
        if kind.endswith("Pooling") and path and not path.startswith(("/", ".")):
            return path
    return POOLING
