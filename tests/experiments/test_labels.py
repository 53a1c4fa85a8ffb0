"""The command that measures generation and transfer by label."""

import json
import shlex

import pytest

from jvae import config as configs
from jvae.experiments import labels, labels_table
from jvae.validation.validate import validate
from tests.experiments.test_results import finished_run


@pytest.fixture
def data(tmp_path):
    for name in ("train.tsv.gz", "valid.tsv", "test.tsv"):
        (tmp_path / name).touch()
    return tmp_path


def test_commands_are_configs_that_pass(data, capsys):
    words = [f"--data={data}", "--kinds=gaussian,gan", "--steps=50", "--dry_run"]
    assert labels.main(words) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines[:2]] == [
        "--workdir=runs/labels/lm",
        "--workdir=runs/labels/optimus",
    ]
    config, _ = configs.from_argv(lines[1])
    assert config is not None and (config.train.steps, config.data.label) == (50, "0")
    assert config.data.train == (f"{data}/train.tsv.gz",)
    few = ["train.check_every=50", "optim.warmup_steps=5"]
    validate(configs.apply_overrides(config, few))
    kinds = [line[2] for line in lines[2:4]]
    assert kinds == ["--prior.kind=gaussian", "--prior.kind=gan"]
    assert lines[4][1:3] == ["--mode=control", "--prior=gaussian,gan"]


@pytest.mark.parametrize(
    "more, message",
    [
        ("--kinds=gaussia", "did you mean 'gaussian'"),
        ("--kinds=", "--kinds is empty; expected some of ctrl_gen"),
        ("--set=data.labels=0", "did you mean 'data.label'"),
    ],
)
def test_mistakes(data, more, message, capsys):
    assert labels.main([f"--data={data}", more]) == 2
    assert message in capsys.readouterr().err


def test_a_split_that_is_missing(data, capsys):
    (data / "valid.tsv").unlink()
    assert labels.main([f"--data={data}"]) == 2
    assert "no valid.tsv or valid.tsv.gz; expected label<TAB>text" in capsys.readouterr().err


def test_published_figures_agree_with_each_other():
    for accuracy, bleu, g, _ in labels.PUBLISHED.values():
        assert g == pytest.approx((accuracy * bleu) ** 0.5, abs=0.15)
    assert labels.published().count("\n") == 4 + 1 + len(labels.DIFFERENCES.splitlines())


def test_scores_are_stored_and_tabulated_beside_the_published_ones(tmp_path):
    run = finished_run(tmp_path / "optimus")
    scores = dict(accuracy=70.0, accuracy_se=2.0, bleu=33.0, g=48.0, self_bleu=None, dist_2=0.8)
    transfer = dict(accuracy=60.0, accuracy_se=2.5, source_bleu=7.5, g=21.25, exact=1.6)
    report = dict(
        generation={"gan": scores | dict(ppl=80.0)},
        transfer={"flow x1": transfer},
        oracle=dict(mean=93.3),
        each=250,
        sentences=500,
    )
    (run / "eval/control.json").write_text(json.dumps(report))
    row = labels.row_of(run, run / "eval/control.json")
    lines = labels_table.table([row]).splitlines()
    assert "| gan | 70.0 ± 2.0 | 33.0 | 48.0 | – | 0.800 | 80.0 |" in lines
    assert "| flow x1 | 60.0 ± 2.5 | 7.5 | 21.2 | 1.6 |" in lines
    assert "| ARAE, published | 96.7 | 20.1 | 44.2 | 25.8 | – | – |" in lines
    assert len({line.count("|") for line in lines[: lines.index("")]}) == 1
    assert lines[-2].endswith(
        "250 texts were generated for each label, and 500 sentences transferred."
    )
    assert labels_table.table([]) == "Not measured."
