"""Checks a whole config before data is read, anything is compiled or a file is written.

All problems are reported in one error, one line each. For an existing run, values it was trained
with are accepted as long as they do no harm: see `validate`.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import models
from jvae.errors import ConfigError
from jvae.fields import Problem, check, check_dataclass, check_effect, idle, lines
from jvae.latent.kl import per_dimension
from jvae.models import Family
from jvae.nn.fused import DROPPING
from jvae.runs import phases, schedules
from jvae.training import freezing, optim
from jvae.training.objectives import without_dimensions
from jvae.tree import named_leaves, sizes
from jvae.validation import schema
from jvae.validation.rules import IDLES, RULES, Facts, Idle, View

MOST_PARAMETERS = 10**12
TRAINING = ("optim", "train", "objective", "noise", "phases", "init")
Values = Mapping[str, Any]  # of a config, by dotted key
# Platforms of the fused attention kernels.
PLATFORMS = {"cudnn": ("gpu", "cuda"), "triton": ("gpu", "cuda", "cpu"), "splash": ("tpu", "cpu")}


def validate(
    config: ConfigDict,
    *,
    saved: ConfigDict | None = None,
    training: bool = True,
    platform: str | None = None,
) -> None:
    """Checks each value of a config, and combinations of values.

    Args:
      saved: the config that the run of this folder was started with. A value that it shares is
        accepted if its only problem is that it has no effect; unless `training`, so is any value in
        a section that only training reads.
      platform: platform of the devices, such as "cpu"; by default that of this process.
    Raises: ConfigError naming all keys, values, what is expected and the closest fix.
    """
    kept = {} if saved is None else configs.flatten(saved)
    flat = configs.flatten(config)

    def harmless(problem: Problem) -> bool:
        unread = not training and all(key.split(".")[0] in TRAINING for key in problem.keys)
        same = all(key in kept and repr(kept[key]) == repr(flat.get(key)) for key in problem.keys)
        return saved is not None and same and (problem.idle or unread)

    problems = [problem for problem in _problems(config, flat, platform) if not harmless(problem)]
    if problems:
        raise ConfigError(lines(problems))


def _problems(config: ConfigDict, flat: Values, platform: str | None) -> list[Problem]:
    if values := list(_values_for_sections(config, configs.base())):
        return values
    base = configs.flatten(configs.base())
    problems = list(_fields(config, flat, base))
    facts, wrong = _model(config, flat, problems)
    problems += wrong
    if any(not problem.idle for problem in problems):
        return problems  # rules compare values, so their types must be right
    views, wrong = _views(config, flat, problems)
    problems += wrong
    dirty = {key for problem in problems for key in problem.keys}

    def clean(*keys: str) -> bool:
        return not any(
            dirty_key == key or dirty_key.startswith(f"{key}.")
            for key in keys
            for dirty_key in dirty
        )

    for rule in RULES:
        if clean(*rule.keys, "phases"):
            problems += [Problem(rule.keys, text) for v in views if (text := rule.wrong(v))]
    if clean("objective", "phases", "train.steps"):
        problems += _schedules(views)
    if facts is None:
        return problems
    problems += check_effect(facts.config, "model")
    problems += _kernels(facts, flat, platform)
    if clean("objective", "phases") and not facts.dimensions:
        problems += _free_bits(views)
    if clean("phases"):
        for rule in IDLES:
            if clean(*rule.keys):
                problems += _idle(rule, views, facts, flat, base)
        if clean("optim", "train.steps"):
            problems += _parameters(config, views, facts)
    return problems


def _values_for_sections(
    config: ConfigDict, base: ConfigDict, prefix: str = ""
) -> Iterator[Problem]:
    """Values in place of a section; nothing else of that section can be checked then."""
    for name, part in base.items():
        key = f"{prefix}{name}"
        if not isinstance(part, ConfigDict) or name not in config:
            continue
        if not isinstance(config[name], ConfigDict):
            yield Problem((key,), f"{key}={config[name]!r}: expected a section")
        else:
            yield from _values_for_sections(config[name], part, f"{key}.")


def _fields(config: ConfigDict, flat: Values, base: Values) -> Iterator[Problem]:
    """Checks each value outside `model` on its own, and unknown and missing keys."""
    for key, value in flat.items():
        if key.split(".")[0] == "model":
            continue
        if value == {} and key in ("phases", *schema.SECTIONS, "objective.aux_weight"):
            continue
        field = schema.field_of(key)
        if field is None:
            text = f"{key}: no such key, so it has no effect{configs.nearest(key, base)}"
            yield Problem((key,), text, idle=True)
        else:
            yield from check(key, field, value, base.get(key, field.absent))
    for key, value in base.items():
        if value != {} and key not in flat:
            yield Problem((key,), f"{key}: missing; a config starts from configs.common.base()")
    if "name" not in config:
        yield Problem(("name",), "name: missing; it names the run's default folder")


def _model(
    config: ConfigDict, flat: Values, problems: list[Problem]
) -> tuple[Facts | None, list[Problem]]:
    """The properties of the model, or the problems of its section."""
    section = config.get("model")
    if not isinstance(section, ConfigDict) or not isinstance(section.get("family"), str):
        return None, [Problem(("model",), "model: expected a section with a family")]
    try:
        family = models.family(section.family)
    except ConfigError as error:
        return None, [Problem(("model.family",), str(error))]
    values = {key: value for key, value in section.to_dict().items() if key != "family"}
    wrong = check_dataclass(family.config, values, "model")
    if wrong:
        return None, wrong
    # A vocabulary of 0 is determined later; its size hardly matters for these checks.
    vocab = flat.get("data.vocab")
    clean = isinstance(vocab, int) and not any("data.vocab" in problem.keys for problem in problems)
    for part in values.values():
        if isinstance(part, dict) and part.get("vocab") == 0:
            part["vocab"] = max(vocab, 1) if clean and vocab else 1
    try:
        facts = _facts(family, section.family, json.dumps(values, sort_keys=True))
    except ConfigError as error:
        return None, [Problem(("model",), str(error))]
    counts = sizes(facts.abstract)
    if sum(counts.values()) > MOST_PARAMETERS:
        path, most = max(counts.items(), key=lambda item: item[1])
        text = (
            f"model: {sum(counts.values()):.3g} parameters, {most:.3g} of them in {path}, are more "
            f"than {MOST_PARAMETERS:g}; lower its sizes"
        )
        return None, [Problem(("model",), text)]
    return facts, []


@functools.lru_cache(maxsize=64)
def _facts(family: Family, name: str, section: str) -> Facts:
    """Uses shapes only: nothing is allocated. Raises: ConfigError."""
    config = configs.dataclass_from(family.config, json.loads(section), "model")
    model = family.build(config)
    return Facts(
        family=name,
        config=config,
        abstract=jax.eval_shape(model.init, jax.random.key(0)),
        axes=model.axes,
        sides=family.limits(config),
        groups=model.latent_shape[0],
        sampler=model.post.sampler is not None,
        kl=model.latent_shape[0] > 0 and model.post.has_kl,
        dimensions=per_dimension(model.post, model.prior),
    )


def _views(
    config: ConfigDict, flat: Values, problems: list[Problem]
) -> tuple[list[View], list[Problem]]:
    """The config as each phase sees it; empty if the phases cannot be resolved."""
    parts = ("phases", "train", *phases.SECTIONS)
    values = {key: field.absent for key, field in _absent()} | dict(flat)
    plain = [View(values, "", flat.get("train.steps", 1))]
    if any(key.split(".")[0] in parts for problem in problems for key in problem.keys):
        return plain, []
    try:
        resolved = phases.resolve(config)
    except ConfigError as error:
        return plain, [Problem(("phases",), str(error))]
    views = []
    for phase in resolved:
        sections = ConfigDict({part: getattr(phase, part) for part in phases.SECTIONS})
        views.append(View(values | configs.flatten(sections), phase.name, phase.steps))
    return views, []


def _absent() -> Iterator[tuple[str, schema.Field]]:
    for section, fields in schema.SECTIONS.items():
        for name, field in fields.items():
            if "*" not in name:
                yield f"{section}.{name}", field


def _schedules(views: list[View]) -> Iterator[Problem]:
    prefix = "objective.beta."
    for v in views:
        section = {
            key.removeprefix(prefix): value
            for key, value in v.values.items()
            if key.startswith(prefix)
        }
        try:
            schedules.build(section, v.steps)
        except ConfigError as error:
            yield Problem(("objective.beta",), f"{_where(v)}objective.beta: {error}")


def _free_bits(views: list[View]) -> Iterator[Problem]:
    for v in views:
        floor, reduce = v["objective.free_bits"], v["objective.kl_reduce"]
        if v["objective.z"] == "posterior" and (floor, reduce) != ("none", "sum"):
            keys = ("objective.free_bits", "objective.kl_reduce")
            yield Problem(keys, f"{_where(v)}{without_dimensions(floor, reduce)}")


def _kernels(facts: Facts, flat: Values, platform: str | None) -> Iterator[Problem]:
    for key, value in flat.items():
        if key.startswith("model.") and key.endswith(".attention") and value in PLATFORMS:
            platform = platform or jax.default_backend()
            if platform not in PLATFORMS[value]:
                expected = " or ".join(PLATFORMS[value])
                yield Problem(
                    (key,),
                    f"{key}={value!r} runs on {expected}, not on {platform}; try "
                    f"--config.{key}=xla",
                )
            rate = f"{key.removesuffix('attention')}dropout"
            if flat.get(rate) and value not in DROPPING:
                yield Problem(
                    (key, rate),
                    f"{key}={value!r} does not support dropout of attention weights, but {rate} "
                    f"is {flat[rate]}; try --config.{key}=xla or --config.{rate}=0",
                )


def _idle(
    rule: Idle, views: list[View], facts: Facts, flat: Values, base: Values
) -> Iterator[Problem]:
    for key in rule.keys:
        default = base.get(key, schema.absent(key))
        by_value: dict[str, list[View]] = {}
        for v in views:
            if v[key] != default and v[key] not in rule.free:
                by_value.setdefault(repr(v[key]), []).append(v)
        for setters in by_value.values():
            if any(rule.reads(v, facts) for v in setters):
                continue
            first = setters[0]
            phase_key = f"phases.{first.phase}.{key}"
            why = rule.why if isinstance(rule.why, str) else rule.why(first, facts)
            yield idle(phase_key if phase_key in flat else key, first[key], default, why)


def _parameters(config: ConfigDict, views: list[View], facts: Facts) -> Iterator[Problem]:
    """Checks rules and patterns of the optimizer against the paths of the parameters."""
    prior = {path for path in named_leaves(facts.abstract) if path.startswith("prior/")}
    still = set() if config.init.model else prior  # may stay untrained in a trained model
    for v in views:
        try:
            plan = freezing.make_plan(
                v["optim.trainable"], facts.abstract, facts.axes, v.steps, config.model.to_dict()
            )
        except ConfigError as error:
            yield Problem(("optim.trainable",), f"{_where(v)}{error}")
            still = set()
            continue
        still = still - (prior if plan is None else {part.path for part in plan.trained})
        late = [part for part in (plan.trained if plan else ()) if part.from_step]
        if late and v is views[0] and config.init.optimizer:
            yield Problem(
                ("init.optimizer",),
                f"{late[0].path} trains from step {late[0].from_step} on (optim.trainable), but "
                "loaded moments would move it before; set init.optimizer=false",
            )
        if v["optim.weight_decay"]:
            trained = jax.eval_shape(
                lambda params, plan=plan: freezing.split(plan, params)[0], facts.abstract
            )
            try:
                optim.decay_mask(trained, v["optim.no_decay"])
            except ConfigError as error:
                yield Problem(("optim.no_decay",), f"{_where(v)}{error}")
    if still:
        text = (
            f"optim.trainable: {', '.join(sorted(still))} would never train, so the prior would "
            "keep its initial values; add the rule ('^prior/', None, None, 0)"
        )
        yield Problem(("optim.trainable",), text)


def _where(v: View) -> str:
    return f"phase {v.phase}: " if v.phase else ""
