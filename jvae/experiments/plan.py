"""How the models of the comparison are made comparable, and the command of each run.

They use the same files and the same tokenizer: byte-level BPE of the training text, or its words if
the vocabulary is closed (the text has `<unk>`). They read the same number of training sentences, in
updates of the same number of sentences, and have the same number of computing parameters (see
`computing`): `sizes` finds the size of every model except the Transformer language model. The rest
is the `tiny` preset.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.evals.settings import PRESETS, SIZES
from jvae.experiments.data import Prepared
from jvae.experiments.entries import BUDGETS, ENTRIES, SWEEPS, Budget, Entry, Overrides
from jvae.experiments.steps import Step
from jvae.runs import build
from jvae.runs.data import ROLES
from jvae.tree import named_leaves

OUT = Path("runs/fair")  # the folder in stored commands, whatever --out was


def computing(name: str) -> bool:
    """Whether a parameter, by its path, takes part in a matrix product for every token.

    All do except tables that are only looked up: embeddings of positions and types, and of tokens
    if the output layer has its own table (LSTM) or that of another stack (the encoder of Optimus).
    A tied table counts once.
    """
    table = name.split("/")[:-1]
    if table[-1:] == ["position"] or table[-1:] == ["type"]:
        return False
    lstm = table[-1:] == ["embed"]
    return not (lstm or table[:3] == ["encoder", "embed", "token"])


def count(config: ConfigDict, entries: int) -> tuple[int, int]:
    """Parameters of a model with that vocabulary size: computing ones, and all."""
    config = ConfigDict(config.to_dict())
    for side in ("encoder", "decoder"):
        if side in config.model:
            config.model[side].vocab = entries
    tree = jax.eval_shape(build.build_model(config).init, jax.random.key(0))
    sizes = {name: leaf.size for name, leaf in named_leaves(tree).items()}
    return sum(n for name, n in sizes.items() if computing(name)), sum(sizes.values())


def sized(entry: Entry, budget: Budget, size: int | None = None) -> ConfigDict:
    """The config of an entry, with its knob set to a size."""
    config = configs.load(entry.config)
    values = entry.values(budget) | budget.overrides
    if size is not None:
        values |= {key: size // 2 if key.endswith("width") else size for key in entry.knob}
    return configs.apply_overrides(config, [f"{key}={value}" for key, value in values.items()])


@functools.cache
def sizes(name: str, budget_name: str, entries: int) -> int | None:
    """The size at which an entry has as many computing parameters as the language model.

    Counts are polynomials of degree 2 in the size, so three of them are sufficient.
    Raises: ConfigError if there is no such size.
    """
    entry, budget = ENTRIES[name], BUDGETS[budget_name]
    if not entry.knob:
        return None
    target, _ = count(sized(ENTRIES["lm"], budget), entries)
    at = [entry.unit * n for n in (1, 4, 16)]
    curve = np.polyfit(at, [count(sized(entry, budget, n), entries)[0] for n in at], 2)
    steps = np.arange(1, 4_096) * entry.unit
    best = int(steps[np.argmin(np.abs(np.polyval(curve, steps) - target))])
    parameters, _ = count(sized(entry, budget, best), entries)
    if abs(parameters / target - 1.0) > 0.1:
        raise ConfigError(
            f"{name} has {parameters:,} computing parameters, the language model {target:,}: no "
            "size comes within 10 %"
        )
    return best


class Job(NamedTuple):
    """One run. point: the override of a sweep, "" for the table itself. words: the flags without
    the folder. probed: whether a linear probe of labels is measured.
    """

    budget: str
    data: str
    entry: str
    seed: int
    point: str
    words: tuple[str, ...]
    folder: Path
    fingerprint: str
    probed: bool = False

    @property
    def steps(self) -> list[Step]:
        """Its commands: training with evaluation, and the probe."""
        workdir = f"--workdir={self.folder}"
        run = Step(self.folder.name, [*self.words, workdir], self.folder / "eval" / "test.txt")
        if not self.probed:
            return [run]
        result = self.folder / "eval" / "probe.txt"
        return [run, Step(f"{self.folder.name}-probe", [workdir, "--mode=probe"], result)]

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """The key of its row; a new row replaces an older one with the same key."""
        return (self.budget, self.data, self.entry, self.seed, self.point)

    def command(self, out: Path | None = None) -> str:
        """The command line; `out` replaces `OUT`, to keep local paths out of stored commands."""
        text = self.steps[0].command
        return text if out is None else text.replace(str(out), str(OUT))


def make_job(
    budget_name: str, data: Prepared, name: str, seed: int, out: Path, point: str = ""
) -> Job:
    """The run of an entry, with everything its config does not already set as flags."""
    entry, budget = ENTRIES[name], BUDGETS[budget_name]
    base = configs.load(entry.config)
    config = sized(entry, budget, sizes(name, budget_name, data.entries))
    packed = config.data.packing == "pack"
    per_row = data.per_row if packed else 1.0
    rows = max(1, round(budget.update / per_row / budget.rows)) * budget.rows
    steps = max(1, round(budget.words / data.mean_words / (rows * per_row)))
    files = dict(data.files)
    if entry.published:
        roles = [role for role in ROLES if base.init[role]]
        flags = data.published_flags(roles)
        files |= {role: data.published[role] for role in roles}
    else:
        flags = data.flags()
    values: Overrides = {"seed": seed, **flags, "data.batch_rows": rows}
    values |= {"train.steps": steps, "train.check_every": -(-steps // budget.checks)}
    if packed and config.data.row_tokens != budget.row_tokens:
        values["data.row_tokens"] = budget.row_tokens

    def words_of(evals: Overrides) -> tuple[str, ...]:
        settings = values | {f"evals.{key}": value for key, value in evals.items()}
        overrides = [
            *(f"{key}={value}" for key, value in settings.items()),
            *([point] if point else ()),
        ]
        changed = configs.diff(base, configs.apply_overrides(config, overrides))
        flags = (_flag(key, new) for key, (_, new) in changed.items())
        return (f"--config={entry.config}", *flags)

    # A language model has nothing to interpolate.
    left_out = () if entry.floor else ("interpolations",)
    words = words_of({key: v for key, v in budget.evals.items() if key not in left_out})
    same = [word.replace(str(out), str(OUT)) for word in words_of(_spelled_out(budget.evals))]
    digest = hashlib.sha256(json.dumps([same, files], sort_keys=True).encode())
    fingerprint = digest.hexdigest()[:12]
    suffix = f"-{point}" if point else ""
    folder = data.folder / f"{name}{suffix}-{seed}-{fingerprint[:6]}"
    probed = data.labelled and entry.floor is not None
    return Job(budget_name, data.name, name, seed, point, words, folder, fingerprint, probed)


def _spelled_out(evals: Overrides) -> Overrides:
    """Replaces the preset of a budget's evaluation by its sizes if they determine it. Rows are
    compared by what they measured, so rows from before the preset had a name remain valid.
    """
    if evals.get("preset") != "comparison":
        return evals
    preset = PRESETS["comparison"]._asdict()
    rest = {key: value for key, value in evals.items() if key != "preset"}
    return {name: preset[name] for name in SIZES if preset[name] is not None} | rest


def _flag(key: str, value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"--config.{key}={text}"


def points(name: str) -> tuple[str, ...]:
    """The overrides of an entry's sweep; the preset's own value is the run in the table."""
    if name not in SWEEPS:
        return ()
    key, values = SWEEPS[name]
    preset_value = configs.flatten(configs.load(ENTRIES[name].config))[key]
    return tuple(f"{key}={value:g}" for value in values if value != preset_value)
