"""The command that fits every kind of prior to every tiny model, and its table."""

import json
import shlex

import pytest

from jvae import config as configs
from jvae.experiments import priors, priors_table, results
from tests.experiments.test_results import finished_run


def metric(own, fitted, ceiling, se=None):
    return {"own": own, "fitted": fitted, "ceiling": ceiling, "se": se}


@pytest.fixture
def run(tmp_path):
    folder = finished_run(tmp_path / "adavae-tiny", "adavae-tiny")
    metrics = {
        "grammatical": metric(30.0, 44.0, 50.0),
        "greedy_grammatical": metric(60.0, 80.0, 82.5),
        "distinct_lines": metric(1_000, 999, 998),
        "memorised": metric(50.0, 60.0, 70.0),
        "self_bleu": metric(20.0, 21.0, 22.0),
        "nll_50": metric(19.5, 19.25, None, 0.05),
    }
    (folder / "eval/prior-flow.json").write_text(json.dumps({"metrics": metrics}))
    return folder


def test_every_kind_is_fitted_to_every_model(capsys):
    assert priors.main(["--dry_run"]) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    each = 1 + len(priors_table.KINDS)
    assert len(lines) == len(priors_table.SPECS) * each
    for place, spec in enumerate(priors_table.SPECS):
        train, *fits = lines[place * each : (place + 1) * each]
        config, rest = configs.from_argv(train)
        assert train[0] == f"--config={spec}" and config is not None
        assert {fit[0] for fit in fits} == set(rest) == {f"--workdir=runs/priors/{config.name}"}
        assert [fit[2] for fit in fits] == [f"--prior.kind={k}" for k in priors_table.KINDS]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--kinds=flo", "did you mean 'flow'"),
        ("--models=adavea:tiny", "did you mean 'adavae'"),
    ],
)
def test_mistakes(words, message, capsys):
    assert priors.main([words]) == 2
    assert message in capsys.readouterr().err


def test_a_row_fills_three_lines_and_the_rest_says_not_measured(run, tmp_path):
    row, rows = priors.row_of("adavae:tiny", "flow", run), tmp_path / "rows.jsonl"
    results.replace(rows, [row | {"nll": "nll_2"}], priors_table.key)
    results.replace(rows, [row], priors_table.key)
    text = priors_table.table(results.read_rows(rows))
    cells = {tuple(c.strip() for c in line.split("|")[1:3]): line for line in text.splitlines()}
    start = "| `adavae:tiny` |"
    expected = {
        "own": "30.0 | – | 60.0 | 1000 | 50.0 | 20.0 | –",
        "flow": "44.0 | 70 | 80.0 | 999 | 60.0 | 21.0 | 0.25 ± 0.05",
        "training posteriors": "50.0 | – | 82.5 | 998 | 70.0 | 22.0 | –",
        "gmm": " | ".join(["not measured"] * 7),
    }
    for prior, values in expected.items():
        assert cells["`adavae:tiny`", prior] == f"{start} {prior} | {values} |"
    assert text.endswith("- `adavae:tiny`: " + f"{row['hardware']}, jax 0.0, commit abc.")


def test_without_a_gap_or_a_density_no_number_is_shown(run):
    row = priors.row_of("adavae:tiny", "flow", run)
    row["metrics"]["grammatical"] = metric(48.0, 49.0, 50.0)
    row["metrics"]["nll_50"] = metric(19.5, None, None)
    line = next(x for x in priors_table.table([row]).splitlines() if "adavae:tiny` | flow" in x)
    assert "| 49.0 | – |" in line and line.endswith("| no density |")
