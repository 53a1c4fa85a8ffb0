"""Tables of RESULTS.md and BENCHMARKS.md from measured rows, one JSON object per line.

    python -m jvae.experiments.results add runs/optimus-tiny     add the row of a finished run
    python -m jvae.experiments.results take rows.jsonl           add `python -m jvae.bench` records
    python -m jvae.experiments.results task O5 runs/fusion       add the row of an experiment's run
    python -m jvae.experiments.results write                     rewrite all tables from the rows

Tables are between `<!-- table: NAME -->` and `<!-- end of table -->`; do not edit them by hand. A
value that has not been measured is printed as "not measured".
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvae.bench import compiled, speed
from jvae.errors import ConfigError, JvaeError
from jvae.evals.card import with_current_names
from jvae.experiments import (
    labels_table,
    own_text_table,
    priors_table,
    targets,
    task_table,
    vectors_table,
)
from jvae.runs.metrics import read_lines
from jvae.runs.workdir import write_text

ROWS = Path(__file__).with_name("results.jsonl")  # rows of runs
MEASURED = Path(__file__).with_name("measured.jsonl")  # rows of benchmarks
TASKS = Path(__file__).with_name("tasks.jsonl")  # rows of the papers' experiments
COMPARISON = Path(__file__).with_name("comparison.jsonl")  # rows of the comparison of all models
OWN_TEXT = Path(__file__).with_name("own_text.jsonl")  # rows of --config=auto and a preset
LABELS = Path(__file__).with_name("labels.jsonl")  # scores of generation and transfer by label
VECTORS = Path(__file__).with_name("vectors.jsonl")  # rows of latents of several vectors
PRIORS = Path(__file__).with_name("priors.jsonl")  # rows of fitted priors
DOCUMENTS = ("RESULTS.md", "BENCHMARKS.md")
END = "<!-- end of table -->"
NOT_MEASURED = speed.NOT_MEASURED

Row = dict[str, Any]


def read_rows(path: Path = ROWS) -> list[Row]:
    """All rows, in the order of the file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    for row in rows:
        if "control" in row:  # its old name
            row["baseline"] = row.pop("control")
    return rows


def row_of(folder: Path, name: str = "test") -> Row:
    """The row of a finished run: metrics of its test split, speed, command, commit, hardware.

    Args:
      name: of another of its reports, instead of the test split's.
    Raises: ConfigError if the run has no such report.
    """
    path = folder / "eval" / f"{name}.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: no eval/{name}.json, so it is not a finished run")
    report = json.loads(path.read_text(encoding="utf-8"))
    if "generation" in report:
        report |= _metrics_by_label(report)
    report = with_current_names(report)
    laps = [line for line in read_lines(folder / "metrics.jsonl") if "train/loss" in line]
    steps = [line["step"] for line in laps]
    lap_steps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    lap_ms = [line["train/time/step_ms"] for line in laps]
    speeds = sorted(line["train/time/tokens_per_s"] for line in laps)
    return {
        "name": report["card"]["config"]["name"],
        "command": f"python -m jvae.main --config={_spec(report['card']['config']['name'])}",
        "commit": report["card"]["commit"],
        "hardware": f"{_cores()}, {platform.machine()}, {report['card']['device']['kind']}",
        "jax": report["card"]["device"]["jax"],
        "steps": _measured_step(report["card"].get("weights"), steps),
        "updates": steps[-1] if steps else 0,
        "train_s": round(sum(n * ms for n, ms in zip(lap_steps, lap_ms, strict=True)) / 1e3, 1),
        "eval_s": round(
            sum(v for name, v in report["time"].items() if name.endswith("_s") and v), 1
        ),
        "tokens_per_s": round(speeds[len(speeds) // 2]),
        "layers": _layers(report["details"].get("latent", {})),
        "mi_saturated": report["details"].get("latent", {}).get("saturated", False),
        # By the rule of `jvae.evals.latent.collapse_reasons`, which the training log also uses.
        "collapse": report["details"].get("latent", {}).get("collapse_reasons", []),
        "metrics": {name: m["value"] for name, m in report["metrics"].items()},
        "baseline": {n: m["baseline"] for n, m in report["metrics"].items() if "baseline" in m},
        "se": {name: m["se"] for name, m in report["metrics"].items() if m["se"] is not None},
    }


def _metrics_by_label(report: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of other reports, from a report of --mode=control: its metrics are named
    `<prior>.<metric>`.
    """
    metrics = {
        f"{prior}.{name}": {"value": value, "se": scores.get(f"{name}_se")}
        for prior, scores in report["generation"].items()
        for name, value in scores.items()
    }
    return {"metrics": metrics, "time": {}, "details": {}}


def add_task(key: str, folder: Path, path: Path = TASKS) -> Row:
    """Stores the row of an experiment's run, or of one of its parts, replacing an older one.

    Raises: ConfigError for an unknown experiment or a run without its report.
    """
    row = row_of(folder, task_table.report_of(key)) | {"name": key}
    replace(path, [row], lambda stored: stored["name"])
    return row


def _measured_step(weights: str | None, steps: Sequence[int]) -> int:
    """Updates of the measured parameters; if unknown, the last logged step."""
    word, _, step = (weights or "").partition(" ")
    if word == "step" and step.isdigit():
        return int(step)
    return steps[-1] if steps else 0


def _cores() -> str:
    """The CPU cores that this process, and so its children, may use."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return f"{total} cores" if usable == total else f"{usable} of {total} cores"


def _layers(latent: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Active units and KL of each layer's latent; None for models with at most one latent."""
    kl = latent.get("kl_per_group_nats") or []
    if len(kl) < 2:
        return None
    au = latent["active_per_group"]["0.01"]
    return {"au": au, "kl": [round(nats, 2) for nats in kl]}


def _spec(name: str) -> str:
    system, _, preset = name.partition("-")
    return f"configs/{system}.py" + (f":{preset}" if preset != "tiny" else "")


def add(folder: Path, path: Path = ROWS) -> Row:
    """Stores the row of a run, replacing an older one of the same name."""
    row = row_of(folder)
    replace(path, [row], lambda stored: stored["name"])
    store(path, sorted(read_rows(path), key=lambda stored: stored["name"]))
    return row


def take(records: Path, path: Path = MEASURED) -> int:
    """Stores records of `python -m jvae.bench`, each replacing an older one of the same program on
    the same device; returns their number.

    Raises: ConfigError if there is no such file.
    """
    if not records.is_file():
        raise ConfigError(
            f"{records}: no such file; `python -m jvae.bench --out={records}` creates it"
        )
    new = {speed.key(row): row for row in read_rows(records)}
    replace(path, list(new.values()), speed.key)
    return len(new)


def store(path: Path, rows: Sequence[Row]) -> None:
    """Writes all rows, one per line."""
    write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def replace(path: Path, rows: Sequence[Row], key: Callable[[Row], Hashable]) -> None:
    """Stores rows, each replacing an older one with the same key."""
    by_key = {key(row): row for row in [*read_rows(path), *rows]}
    store(path, list(by_key.values()))


def _number(row: Row, name: str, digits: int) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return "–" if name in row["metrics"] else NOT_MEASURED
    se = row["se"].get(name)
    return f"{value:.{digits}f}" + (f" ± {se:.{digits}f}" if se is not None else "")


def _baseline(row: Row, name: str, digits: int) -> str:
    """The metric's baseline: the untrained model, or chains left at their prior draws."""
    if row["metrics"].get(name) is None:
        return "–"
    value = row.get("baseline", {}).get(name)
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def _by_layer(row: Row, name: str) -> str:
    layers = row.get("layers")
    return f" ({', '.join(f'{value:g}' for value in layers[name])})" if layers else ""


RUN_COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("run", lambda r: f"`{r['name']}`"),
    ("exact match %", lambda r: _number(r, "exact_match", 1)),
    ("NLL_100", lambda r: _number(r, "nll_100", 2)),
    ("exact -log p", lambda r: _number(r, "exact", 2)),
    ("PPL_w", lambda r: _number(r, "ppl_w", 2)),
    ("floor", lambda r: _number(r, "ppl_w_floor", 2)),
    ("KL", lambda r: _number(r, "kl", 2) + _by_layer(r, "kl")),
    ("MI", lambda r: "≥ " * r["mi_saturated"] + _number(r, "mi", 2)),
    ("AU", lambda r: _number(r, "au_0.01", 0) + _by_layer(r, "au")),
    ("AU, baseline", lambda r: _baseline(r, "au_0.01", 0)),
    ("grammatical %, T = 1", lambda r: _number(r, "prior_grammatical", 1)),
    ("greedy", lambda r: _number(r, "prior_greedy_grammatical", 1)),
    ("distinct %", lambda r: _number(r, "prior_distinct", 1)),
    ("train + eval s", lambda r: f"{r['train_s']:.0f} + {r['eval_s']:.0f}"),
    ("tokens/s", lambda r: f"{r['tokens_per_s']:,}"),
)


def runs_table(rows: Sequence[Row]) -> str:
    """Markdown of the runs on the embedded corpus, and where they were measured."""
    head = [name for name, _ in RUN_COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell(row) for _, cell in RUN_COLUMNS) + " |" for row in rows]
    lines.append("")
    for row in rows:
        lines.append(
            f"- `{row['name']}`: `{row['command']}`; {row['hardware']}, jax {row['jax']}, "
            f"commit {row['commit']}."
        )
    return "\n".join(lines)


def generated() -> dict[str, str]:
    """All tables by name, from the stored rows."""
    runs, measured = read_rows(), read_rows(MEASURED)
    return {
        "runs": runs_table(runs),
        "targets": targets.table(measured),
        "tasks": task_table.table(read_rows(TASKS), read_rows(COMPARISON)),
        "own_text": own_text_table.table(read_rows(OWN_TEXT)),
        "labels": labels_table.table(read_rows(LABELS)),
        "priors": priors_table.table(read_rows(PRIORS)),
        "vectors": vectors_table.table(read_rows(VECTORS)),
        "peers": speed.peer_table(measured),
        "cpu": speed.preset_tables(measured, "cpu"),
        "gpu": speed.preset_tables(measured, "gpu"),
        "compiled": compiled.table(),
        "tpu": speed.preset_tables(measured, "tpu"),
    }


def filled(text: str, tables: Mapping[str, str]) -> str:
    """Regenerates every table in a document.

    Raises: ConfigError for an unknown table, or one without its end mark.
    """
    out, rest = "", text
    while True:
        before, marker, after = rest.partition("<!-- table: ")
        out += before
        if not marker:
            return out
        name, close, body = after.partition(" -->")
        _, end, rest = body.partition(END)
        if name not in tables or not close or not end:
            raise ConfigError(f"table {name.splitlines()[0]!r}: unknown, or without {END!r}")
        out += f"{marker}{name}{close}\n{tables[name]}\n{END}"


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    try:
        if len(argv) == 2 and argv[0] == "add":
            print(json.dumps(add(Path(argv[1])), sort_keys=True, indent=2))
        elif len(argv) == 3 and argv[0] == "task":
            print(json.dumps(add_task(argv[1], Path(argv[2])), sort_keys=True, indent=2))
        elif len(argv) == 2 and argv[0] == "take":
            print(f"{take(Path(argv[1]))} records; `write` puts them into the documents")
        elif list(argv) == ["write"]:
            tables = generated()
            for path in map(Path, DOCUMENTS):
                write_text(path, filled(path.read_text(encoding="utf-8"), tables))
        else:
            print(__doc__)
            return 2
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
