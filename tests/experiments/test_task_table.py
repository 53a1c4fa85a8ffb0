"""The table of the five papers' experiments: no cell is empty, figures come from stored rows."""

import json
import shlex
from pathlib import Path

import pytest

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.experiments import labels, results, task_table

ROOT = Path(__file__).parents[2]
ROW = dict(
    name="O5",
    command="fusion",
    metrics=dict(dialogue_bleu_recall=0.25, dialogue_bleu_f1=0.125, mi=2.0),
    se=dict(dialogue_bleu_recall=0.5),
    train_s=10.0,
    eval_s=2.0,
    steps=1_500,
    hardware="2 cores, x86_64, cpu",
)
SNLI = ROW | dict(
    entry="optimus", data="snli", budget="cpu-short", point="", seed=0, k=7, updates=3
)


def cells(rows, comparison=()):
    lines = task_table.table(rows, comparison).splitlines()
    split = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    assert len({len(line) for line in split[:1] + split[2:]}) == 1
    return {line[0].removeprefix("| "): line for line in split[2:]}


def test_no_cell_is_empty_and_what_is_not_measured_says_why():
    actual = cells([])
    assert (
        len(actual) == len(task_table.EXPERIMENTS) == len({e.key for e in task_table.EXPERIMENTS})
    )
    for line in actual.values():
        assert all(line) and line[5].startswith("not measured: ")
        assert not line[5].endswith(": ")


def test_a_figure_comes_from_its_run_or_from_the_comparison():
    actual = cells([ROW], [SNLI, SNLI | dict(metrics={}, point="beta=1")])
    assert actual["O5"][4:6] == ["1,500 updates, 12 s on 2 cores", "R 0.250 ± 0.500, F1 0.125"]
    assert actual["O1"][4:6] == ["3 updates, 12 s on 2 cores", "MI 2.00"]
    saturated = cells([], [SNLI | dict(mi_saturated=True)])
    assert saturated["O1"][5] == "MI ≥ 2.00" and saturated["O5"][4] == "–"
    seeds = cells([], [SNLI | dict(seed=1, k=9, updates=9), SNLI, SNLI | dict(seed=2, updates=8)])
    assert seeds["O1"][4] == "3 updates, 12 s on 2 cores"


def test_configs_of_the_commands_exist():
    """Options that `...` leaves open aside."""
    for experiment in task_table.EXPERIMENTS:
        for word in shlex.split(experiment.command):
            if word.startswith("--config="):
                assert configs.load(word.removeprefix("--config=")).model.family


def test_a_run_becomes_the_row_of_an_experiment(tmp_path):
    (tmp_path / "run/eval").mkdir(parents=True)
    card = dict(commit="a", config=dict(name="tasks-fusion"), device=dict(kind="cpu", jax="0"))
    metrics = dict(dialogue_bleu_f1=dict(value=0.5, se=None))
    report = dict(card=card, metrics=metrics, time=dict(text_s=1.0), details={})
    (tmp_path / "run/eval/test.json").write_text(json.dumps(report))
    lap = {"step": 4, "train/loss": 1.0, "train/time/step_ms": 2.0}
    line = json.dumps(lap | {"train/time/tokens_per_s": 1.0})
    (tmp_path / "run/metrics.jsonl").write_text(line + "\n")
    rows = tmp_path / "tasks.jsonl"
    for _ in range(2):
        results.add_task("O5", tmp_path / "run", rows)
    (row,) = results.read_rows(rows)
    assert cells([row])["O5"][5] == "F1 0.500" and row["steps"] == 4
    with pytest.raises(ConfigError, match="experiment 'O99': unknown; known: O1, "):
        results.add_task("O99", tmp_path / "run", rows)
    with pytest.raises(ConfigError, match="no eval/finetune.rte.pooled-frozen.json"):
        results.add_task("O8/rte", tmp_path / "run", rows)


def test_parts_of_an_experiment_share_a_cell_and_the_training_they_have_in_common():
    parts = [
        ROW | dict(name=f"O8/{task}", command="encoder", metrics=dict(nlu_accuracy=value), se={})
        for task, value in (("rte", 50.0), ("sst2", 75.0))
    ]
    parts[1] |= dict(baseline=dict(nlu_accuracy=60.0))
    assert cells(parts)["O8"][4:6] == [
        "1,500 updates, 14 s on 2 cores",
        "sst2: accuracy % 75.0, untrained encoder 60.0; rte: accuracy % 50.0; mrpc: not run",
    ]
    runs = [
        ROW | dict(name=f"O2/{way}", command=way, metrics=dict(rec=1.0), se={})
        for way in ("memory", "both")
    ]
    assert cells(runs)["O2"][4:6] == [
        "2 x 1,500 updates, 24 s on 2 cores",
        "both: Rec 1.00; memory: Rec 1.00; embedding, softmax: not run",
    ]


def test_runs_with_several_seeds_are_averaged():
    accuracy, clusters = "sri_label_100", "cluster_label_accuracy"
    rows = [
        ROW
        | dict(name=f"S2/seed {seed}", command=f"seed={seed}", se={accuracy: 9.0})
        | dict(metrics={accuracy: value}, baseline={accuracy: value - 20})
        for seed, value in enumerate((70.0, 71.0, 75.0))
    ]
    one = ROW | dict(name="S3/seed 1", metrics={clusters: 55.0}, baseline={clusters: 50.0})
    actual = cells([*rows, one])
    assert actual["S2"][4:6] == [
        "3 x 1,500 updates, 36 s on 2 cores",
        "mean ± sd of 3 training seeds: accuracy % with 100 72.0 ± 2.6, "
        "untrained model with 100 52.0",
    ]
    assert actual["S3"][5] == (
        "seed 1: accuracy % 55.0, untrained model 50.0; seed 0, seed 2: not run"
    )


def test_scores_by_label_become_the_row_of_an_experiment(tmp_path):
    assert "control-" + "-".join(labels.KINDS) == task_table.CONTROL
    (tmp_path / "eval").mkdir()
    card = dict(commit="a", config=dict(name="optimus-tiny"), device=dict(kind="cpu", jax="0"))
    scores = dict(accuracy=90.0, accuracy_se=1.0, bleu=30.0, by_label=dict(a=90.0))
    report = dict(card=card, generation={"gan": scores, "shuffled labels": dict(accuracy=50.0)})
    (tmp_path / f"eval/{task_table.CONTROL}.json").write_text(json.dumps(report))
    lap = {"step": 4, "train/loss": 1.0, "train/time/step_ms": 500.0}
    line = json.dumps(lap | {"train/time/tokens_per_s": 1.0})
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    row = results.add_task("O7", tmp_path, tmp_path / "tasks.jsonl")
    assert cells([row])["O7"][5] == (
        "accuracy % 90.0 ± 1.0, BLEU 30.0, accuracy % with permuted labels 50.0"
    )


def test_the_documents_are_those_of_the_stored_rows():
    tables = results.generated()
    for name in results.DOCUMENTS:
        text = (ROOT / name).read_text()
        assert results.filled(text, tables) == text, name
