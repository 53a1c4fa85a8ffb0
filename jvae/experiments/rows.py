"""Rows of the comparison: what a finished run measured, its cost, and possible faults."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jvae.api import Batch
from jvae.cli.aot import matmul_flops
from jvae.data.dataset import block_rows, eval_batches
from jvae.errors import ConfigError
from jvae.evals.collect import mean_se
from jvae.experiments import results
from jvae.experiments.entries import ENTRIES, SWEEPS
from jvae.experiments.plan import Job, computing
from jvae.experiments.results import Row
from jvae.parallel import mesh as meshes
from jvae.runs import build, phases, workdir
from jvae.runs.metrics import read_lines
from jvae.runs.workdir import write_text
from jvae.training import program
from jvae.tree import named_leaves

ROWS = Path(__file__).with_name("comparison.jsonl")
Key = tuple[str, str, str, int, str]
ERRORS = 2.0  # tolerance of bounds, in standard errors
KEYS = ("budget", "data", "entry", "seed", "point")


class Cost(NamedTuple):
    """Parameters of a run, and the last step and FLOPs per update of each of its phases: those of
    the matrix products of its programs, with padding, the encoder, chains and frozen parts.
    """

    params: int
    params_all: int
    phases: list[tuple[int, float]]

    def until(self, step: int) -> float:
        """FLOPs of all updates until a step."""
        total, begin = 0.0, 0
        for end, flops in self.phases:
            total += max(0, min(end, step) - begin) * flops
            begin = end
        return total


def key(row: Row) -> Key:
    """The key of a row; a newer row replaces an older one with the same key."""
    budget, data, entry, seed, point = (row[name] for name in KEYS)
    return budget, data, entry, seed, point


def store(row: Row, path: Path) -> None:
    """Stores a row, replacing an older one with the same key; rows are kept in table order."""
    rows = {key(old): old for old in results.read_rows(path)} | {key(row): row}
    place = {name: i for i, name in enumerate(ENTRIES)}

    def order(entry: Row) -> tuple[str, str, int, str, int]:
        at = place.get(entry["entry"], len(place))
        return entry["budget"], entry["data"], at, entry["point"], entry["seed"]

    lines = (json.dumps(entry, sort_keys=True) + "\n" for entry in sorted(rows.values(), key=order))
    write_text(path, "".join(lines))


def row_of(job: Job, out: Path) -> Row:
    """The row of a finished run.

    Raises: ConfigError if it has not been evaluated.
    """
    result = results.row_of(job.folder)
    if job.probed:
        probe = results.row_of(job.folder, "probe")
        for part in ("metrics", "baseline", "se"):
            result[part] |= {n: v for n, v in probe[part].items() if n == "probe_label"}
    path = job.folder / "eval" / "test.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    card = report["card"]
    log = read_lines(job.folder / "metrics.jsonl")
    laps = [line for line in log if "train/loss" in line]
    ends = [line["step"] for line in laps]
    lap_steps = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    seen = sum(n * lap["train/sentences"] for n, lap in zip(lap_steps, laps, strict=True))
    speeds = sorted(lap["train/time/sentences_per_s"] for lap in laps)
    sweep_key = SWEEPS.get(job.entry, ("", ()))[0]
    lines = path.with_name("test.sentences.jsonl").read_text(encoding="utf-8").splitlines()
    by_sentence = [json.loads(line) for line in lines]
    nll = "nll" if "nll" in by_sentence[0] else f"nll_{card['k']}"
    costs = cost(job.folder, ends[-1])
    return result | {
        "nll_e": [round(record[nll], 3) for record in by_sentence],
        "sentence_e": [record["sentence"] for record in by_sentence],
        "budget": job.budget,
        "data": job.data,
        "entry": job.entry,
        "seed": job.seed,
        "point": job.point,
        "fingerprint": job.fingerprint,
        "command": job.command(out),
        "date": datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat(),
        "k": card["k"],
        "evaluated": card["sentences"],
        "knob": card["config"].get(sweep_key),
        "weights": card["weights"],
        "sentences": round(seen),
        "updates": ends[-1],
        "sentences_per_s": round(speeds[len(speeds) // 2], 1),
        "notes": report["notes"],
        "mi_n": _sentences_of_mi(report["metrics"]),
        "flops": costs.until(ends[-1]),
        "params": costs.params,
        "params_all": costs.params_all,
        "curve": _curve(log, costs),
    }


def _curve(log: Sequence[Mapping[str, Any]], costs: Cost) -> list[tuple[float, float]]:
    """Training TFLOP until every check of the last phase, and its validation -ELBO in nats per
    sentence. Empty for short runs, whose validation has no bound.
    """
    begin = costs.phases[-2][0] if len(costs.phases) > 1 else 0
    return [
        (
            float(f"{costs.until(line['step']) / 1e12:.4g}"),
            round(line["valid/neg_elbo"], 3),
        )
        for line in log
        if "valid/neg_elbo" in line and line["step"] > begin
    ]


def _sentences_of_mi(metrics: Mapping[str, Any]) -> int | None:
    """N of the mutual information, parsed from its note."""
    note = metrics.get("mi", {}).get("note", "")
    return int(note.split(",")[0].removeprefix("N = ")) if note.startswith("N = ") else None


def cost(folder: Path, steps: int) -> Cost:
    """The cost of the first `steps` updates of a run."""
    config = workdir.saved_config(folder)
    run = build.open_run(config, folder)
    mesh = meshes.make_mesh(run.config.mesh)
    plan = block_rows(run.data["train"], run.rows)
    shapes = Counter(tuple(sorted(row.items())) for row in plan.row)
    first = next(iter(eval_batches(run.data["train"], run.rows)))
    done, ends = 0, []
    for phase in phases.resolve(run.config):
        current = program.compile_phase(run, phase, mesh, begin=done)
        state, drawn = current.abstract, jax.eval_shape(lambda: jax.random.key(0))
        mean = sum(
            times * matmul_flops(current.train_step.trace(state, _of(first, row), drawn).jaxpr)
            for row, times in shapes.items()
        ) / sum(shapes.values())
        done = min(done + phase.steps, steps)
        ends.append((done, mean))
    params, _ = build.param_shardings(run.model, mesh)
    leaves = {name: math.prod(leaf.shape) for name, leaf in named_leaves(params).items()}
    computing_params = sum(n for name, n in leaves.items() if computing(name))
    return Cost(computing_params, sum(leaves.values()), ends)


def _of(batch: Batch, row: Sequence[tuple[str, int]]) -> Batch:
    """An abstract batch whose sides have other lengths."""
    length = dict(row)

    def cut(array: Array, side: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((array.shape[0], length[side]), array.dtype)

    def side(name: str, tokens: Any) -> Any:
        return jax.tree.map(lambda array: cut(array, name), tokens)  # parts may be None

    return batch._replace(
        enc=side("enc", batch.enc),
        dec=side("dec", batch.dec),
        cond=side("cond", batch.cond),
        scored_bt=cut(batch.scored_bt, "dec"),
        id_e=jax.ShapeDtypeStruct(batch.id_e.shape, batch.id_e.dtype),
    )


def faults(row: Row, floor: Row | None) -> list[str]:
    """Values that are impossible or suspicious, beyond `ERRORS` standard errors.

    Args:
      floor: the language model with the same kind of decoder, data and seed.
    """
    messages, value = [], row["metrics"].get
    se = {name: error or 0.0 for name, error in row["se"].items()}
    nll, bound = f"nll_{row['k']}", value("neg_elbo")
    slack = ERRORS * se.get(nll, 0.0)
    if bound is not None and value(nll) > bound + slack:
        messages.append(f"NLL_{row['k']} {value(nll):.2f} lies above -ELBO {bound:.2f}")
    kl, mi = value("kl"), value("mi")
    if kl is not None and mi is not None:
        if mi > kl + max(ERRORS * se.get("mi", 0.0), 0.05):
            messages.append(f"MI {mi:.2f} exceeds KL {kl:.2f}")
        most = math.log(row["mi_n"]) if row.get("mi_n") else math.inf
        # Rows made with the analytic entropy (before November 2026) may exceed ln N by chance.
        if mi > most + max(ERRORS * se.get("mi", 0.0), 1e-3):
            messages.append(f"MI {mi:.2f} exceeds ln N = {most:.2f}")
        baseline = row["baseline"].get("au_0.01")
        if ENTRIES[row["entry"]].config.startswith("sri") and baseline:
            messages.append(f"the baseline of AU is {baseline}, expected 0")
    if floor is not None:
        over, error = over_floor(row, floor)
        if over < -ERRORS * error:
            messages.append(
                f"NLL_{row['k']} lies {-over:.2f} ± {error:.2f} (paired) below "
                f"{ENTRIES[floor['entry']].title}: a better model, or a wrong bound"
            )
    exact = value("exact")
    if exact is not None and value(nll) < exact - slack:
        messages.append(f"NLL_{row['k']} {value(nll):.2f} lies below the exact {exact:.2f}")
    return messages


def over_floor(row: Row, floor: Row) -> tuple[float, float]:
    """NLL minus that of the language model and its standard error, paired by sentence.

    Raises: ConfigError if they were measured on different sentences.
    """
    if row["sentence_e"] != floor["sentence_e"]:
        raise ConfigError(f"{row['entry']} and {floor['entry']}: measured on different sentences")
    difference, error = mean_se(np.subtract(row["nll_e"], floor["nll_e"]))
    return difference, error or 0.0


def floor_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the language model that a row is compared with."""
    name = ENTRIES[row["entry"]].floor
    floor_key = (row["budget"], row["data"], name, row["seed"], "")
    return next((candidate for candidate in rows if key(candidate) == floor_key), None)


def faults_of(rows: Sequence[Row]) -> dict[Key, list[str]]:
    """`faults` of every row that has any."""
    faults_by_key = {key(row): faults(row, floor_of(row, rows)) for row in rows}
    return {row_key: messages for row_key, messages in faults_by_key.items() if messages}
