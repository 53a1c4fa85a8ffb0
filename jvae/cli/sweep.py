"""Trains a run for every combination of config values; writes a table and a rate-distortion figure.

    python -m jvae.main --config=optimus --sweep=objective.beta.stop=0.1,0.5,1 --workdir=runs/beta

Every point is an ordinary run in its own folder. Run the same command to resume an interrupted
sweep; finished points are not repeated.
"""

import itertools
import json
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
from ml_collections import ConfigDict

from jvae import config as configs
from jvae import renamed
from jvae.errors import ConfigError, JvaeError
from jvae.runs import start
from jvae.runs.workdir import write_text
from jvae.validation.validate import validate

log = logging.getLogger(__name__)

TABLE, ROWS, FIGURE = "sweep.md", "sweep.json", "rate_distortion"
COLUMNS = (
    ("rec", "Rec"),
    ("kl", "KL"),
    ("neg_elbo", "-ELBO"),
    ("nll_{k}", "NLL_{k}"),
    ("mi", "MI"),
    ("au_0.01", "AU"),
    ("exact_match", "exact match %"),
)


class Row(TypedDict):
    """The result of one point. values: those of its flags, as text."""

    values: dict[str, str]
    k: int | None
    metrics: dict[str, Any]
    se: dict[str, float | None]


class Point(NamedTuple):
    """One combination. values: flags without dashes, such as "optim.lr=0.1"."""

    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder of the run."""
        return ",".join(value.replace("/", "_") for value in self.values)


def points(config: ConfigDict, axes: Sequence[str]) -> list[Point]:
    """All combinations of "key=value,value,..." axes; the last axis varies fastest.

    Raises: ConfigError for an axis without values, a repeated key, or an invalid value.
    """
    keys, values = [], []
    for axis in axes:
        key, equals, text = axis.removeprefix("config.").partition("=")
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not equals or not words:
            raise ConfigError(f"--sweep={axis}: write --sweep=KEY=VALUE,VALUE,...")
        current = renamed.key(key, config)
        if current in keys:
            raise ConfigError(f"--sweep={axis}: {current} already has an axis")
        keys.append(current)
        values.append([f"{key}={word}" for word in words])
    combinations = [Point(combination) for combination in itertools.product(*values)]
    for point in combinations:
        try:
            validate(_config_of(point, config))
        except ConfigError as error:
            raise ConfigError(f"sweep point {' '.join(point.values)}: {error}") from None
    return combinations


def _config_of(point: Point, config: ConfigDict, folder: Path | None = None) -> ConfigDict:
    """The config of a point. If it names other pretrained folders, their sizes are set here."""
    if any(value.startswith("init.") for value in point.values):
        return start.configure(config, point.values, folder)
    return configs.apply_overrides(config, point.values)


def launch_lines(spec: Sequence[str], plan: Sequence[Point], folder: Path) -> list[str]:
    """The command of every point, to be run elsewhere; `spec` is the part that names the config."""
    return [
        shlex.join(
            ["python", "-m", "jvae.main", *spec]
            + [f"--config.{value}" for value in point.values]
            + [f"--workdir={folder / point.name}"]
        )
        for point in plan
    ]


def run(
    config: ConfigDict,
    plan: Sequence[Point],
    folder: Path,
    train: Callable[[ConfigDict, Path], object],
) -> str:
    """Trains and evaluates every unfinished point, and collects the results of all.

    A point that fails is reported and left out; the others still run.
    Returns: the table. Raises: ConfigError if every point failed.
    """
    ended = []
    for number, point in enumerate(plan, 1):
        log.info("sweep %d of %d: %s", number, len(plan), " ".join(point.values))
        try:
            run_folder = folder / point.name
            train(_config_of(point, config, run_folder), run_folder)
            ended.append(point)
        except JvaeError as error:
            log.error("%s: %s", point.name, error)
        jax.clear_caches()
    return collect(ended, folder)


def collect(plan: Sequence[Point], folder: Path) -> str:
    """Writes table, rows and figure of the finished points; returns the table."""
    rows = [row for point in plan if (row := _row(point, folder / point.name)) is not None]
    if not rows:
        raise ConfigError(f"{folder}: no point of the sweep has finished")
    write_text(folder / ROWS, json.dumps(rows, indent=2, sort_keys=True) + "\n")
    text = table(rows)
    write_text(folder / TABLE, text + "\n")
    if any(row["metrics"].get("kl") is not None for row in rows):
        figure(rows, folder)
    return text


def _row(point: Point, folder: Path) -> Row | None:
    path = folder / "eval" / "test.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    return {
        "values": {key: text for key, _, text in (v.partition("=") for v in point.values)},
        "k": report["card"]["k"],
        "metrics": {name: m["value"] for name, m in report["metrics"].items()},
        "se": {name: m["se"] for name, m in report["metrics"].items()},
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, nats per sentence."""
    keys, k = list(rows[0]["values"]), rows[0]["k"]
    head = [*keys, *(title.format(k=k) for _, title in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["values"][key] for key in keys]
        for name, _ in COLUMNS:
            value, se = (row[part].get(name.format(k=k)) for part in ("metrics", "se"))
            error = f" ± {se:.2f}" if se is not None else ""
            cells.append("-" if value is None else f"{value:.2f}{error}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: Sequence[Row], folder: Path) -> None:
    """Rate (KL) against distortion (Rec) of every point, as PNG and SVG, with lines of equal -ELBO.

    Source: Alemi et al. 2018, "Fixing a Broken ELBO".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    latent_rows = [row for row in rows if row["metrics"].get("kl") is not None]
    rate = [row["metrics"]["kl"] for row in latent_rows]
    rec = [row["metrics"]["rec"] for row in latent_rows]
    drawn = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot(xlabel="rate: KL (nats/sentence)", ylabel="distortion: Rec (nats)")
    ends = [0.0, 1.1 * max([*rate, 1.0])]
    exact = [
        row["metrics"]["exact"] for row in latent_rows if row["metrics"].get("exact") is not None
    ]
    for total, style, label in (
        (min(r + d for r, d in zip(rate, rec, strict=True)), ":", "best -ELBO of the sweep"),
        *(((exact[0], "-", "exact -log p: none can lie below"),) if exact else ()),
    ):
        axes.plot(ends, [total - x for x in ends], style, color="0.6", label=label)
    axes.plot(rate, rec, "o", color="C0")
    for row, x, y in zip(latent_rows, rate, rec, strict=True):
        text = ", ".join(row["values"].values())
        axes.annotate(text, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlim(0, ends[1])
    axes.set_ylim(0, 1.15 * max(rec))
    axes.set_title("  ".join(rows[0]["values"]), fontsize=9)
    axes.legend(fontsize=8)
    for kind in ("png", "svg"):
        drawn.savefig(folder / f"{FIGURE}.{kind}", dpi=150)
