"""The command that measures generation and transfer by label."""

import shlex

import pytest

from jvae import config as configs
from jvae.experiments import labels
from jvae.validation.validate import validate


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
