"""Rows of runs and the tables made of them."""

import json
from pathlib import Path

import pytest

from jvae.errors import ConfigError
from jvae.experiments import results

ROOT = Path(__file__).parents[2]


def finished_run(folder: Path, name: str = "optimus-tiny") -> Path:
    metrics = {
        "exact_match": {"value": 61.25, "se": None},
        "nll_100": {"value": 18.5, "se": 0.1},
        "mi": {"value": None, "se": None},
    }
    card = {
        "commit": "abc",
        "config": {"name": name},
        "device": {"kind": "cpu", "jax": "0.0"},
    }
    report = {
        "card": card,
        "metrics": metrics,
        "time": {"text_s": 1.0, "latent_s": 2.5, "cost_ratio": 1.1},
        "details": {},
    }
    (folder / "eval").mkdir(parents=True)
    (folder / "eval/test.json").write_text(json.dumps(report))
    laps = [(10, 100.0, 50.0), (20, 300.0, 40.0), (30, 200.0, 60.0)]
    lines = [
        {"step": s, "train/loss": 1.0, "train/time/step_ms": ms, "train/time/tokens_per_s": speed}
        for s, ms, speed in laps
    ]
    lines.insert(1, {"step": 10, "valid/loss": 2.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_row_of_a_run(tmp_path):
    row = results.row_of(finished_run(tmp_path / "run", "optimus-tiny_cls"))
    assert row["train_s"] == 6.0 and row["eval_s"] == 3.5 and row["tokens_per_s"] == 50
    assert row["command"] == "python -m jvae.main --config=configs/optimus.py:tiny_cls"
    assert row["metrics"]["exact_match"] == 61.25 and row["se"] == {"nll_100": 0.1}


def test_add_replaces_the_row_of_the_same_name(tmp_path):
    rows = tmp_path / "rows.jsonl"
    results.add(finished_run(tmp_path / "a", "b-tiny"), rows)
    results.add(finished_run(tmp_path / "b", "a-tiny"), rows)
    results.add(finished_run(tmp_path / "c", "b-tiny"), rows)
    assert [row["name"] for row in results.read_rows(rows)] == ["a-tiny", "b-tiny"]


def test_cells(tmp_path):
    text = results.runs_table([results.row_of(finished_run(tmp_path / "run"))])
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells[:3] == ["`optimus-tiny`", "61.2", "18.50 ± 0.10"]
    assert cells[7] == "–" and cells[4] == "not measured"


def test_latents_of_layers_are_told_apart(tmp_path):
    folder = finished_run(tmp_path / "run", "della-tiny")
    path = folder / "eval/test.json"
    report = json.loads(path.read_text())
    per_layer = {"active_per_group": {"0.01": [5, 13]}, "kl_per_group_nats": [1.125, 4.5]}
    report["details"] = {"latent": per_layer}
    report["metrics"] |= {
        "kl": {"value": 5.625, "se": None},
        "au_0.01": {"value": 18, "se": None, "baseline": 2},
    }
    path.write_text(json.dumps(report))
    cells = results.runs_table([results.row_of(folder)]).splitlines()[2].split(" | ")
    assert "5.62 (1.12, 4.5)" in cells and "18 (5, 13)" in cells
    assert cells[cells.index("18 (5, 13)") + 1] == "2"


def test_a_document_is_filled_between_its_marks():
    text = f"a\n<!-- table: runs -->\nold\n{results.END}\nb\n"
    tables = {"runs": "new"}
    filled = results.filled(text, tables)
    assert filled == f"a\n<!-- table: runs -->\nnew\n{results.END}\nb\n"
    assert results.filled(filled, tables) == filled
    with pytest.raises(ConfigError, match="walks"):
        results.filled(f"<!-- table: walks -->\n{results.END}", tables)
    with pytest.raises(ConfigError, match="without"):
        results.filled("<!-- table: runs -->\nno end", tables)


def test_an_unfinished_run_has_no_row(tmp_path):
    with pytest.raises(ConfigError, match="no eval/test.json"):
        results.row_of(tmp_path)


def test_the_documents_show_the_rows():
    tables = results.generated()
    for name in results.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert results.filled(text, tables) == text, name
