"""The command that compares `--config=auto` with a preset on a user's own text."""

import gzip
import json
import shlex

import pytest

from jvae.errors import ConfigError
from jvae.experiments import data as experiment_data
from jvae.experiments import own_text, own_text_table, results
from tests.experiments.test_results import finished_run


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "mine.txt.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f"text {i}\n" for i in range(1_010) for _ in range(2))
    return path


def test_every_size_is_measured_on_the_same_text(texts, tmp_path, capsys):
    words = [f"--data=mine={texts}", "--lines=5,10", f"--out={tmp_path}", "--dry_run"]
    assert own_text.main(words) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["--config=auto", "--config=optimus"] * 2
    assert [line[1] for line in lines[::2]] == [
        f"--config.data.train={tmp_path}/mine-{count}.txt" for count in (5, 10)
    ]
    assert len({tuple(line[2:4]) for line in lines}) == 1  # validation and test
    assert len({line[4] for line in lines}) == 4  # folders
    splits = [
        (tmp_path / f"mine-{name}.txt").read_text().splitlines()
        for name in ("valid", "test", "10", "5")
    ]
    assert splits[3] == splits[2][:5]
    every = sum(splits[:3], [])
    assert every == [f"text {i}" for i in range(1_010)]


def test_a_name_is_of_one_file(texts, tmp_path, capsys):
    words = ["--lines=5", f"--out={tmp_path}/out", "--dry_run"]
    other = tmp_path / "other.txt"
    other.write_text("".join(f"other {i}\n" for i in range(1_010)))
    assert own_text.main([f"--data=mine={texts}", *words]) == 0
    assert own_text.main([f"--data=mine={texts}", *words]) == 0
    assert own_text.main([f"--data=mine={other}", *words]) == 2
    assert "holds the lines of another file" in capsys.readouterr().err
    other.write_bytes(b"caf\xe9\n" * 2_000)
    assert own_text.main([f"--data=new={other}", *words]) == 2
    assert "other.txt: cannot be read as UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--lines=11"], "1,010 distinct lines, but --lines=11 needs 1,011"),
        (["--lines=a"], "--lines=a: expected numbers"),
        (["--lines=0"], "--lines: expected numbers of training lines"),
        (["--choices=optimu"], "did you mean 'optimus'"),
        (["--data=mine"], "write --data=NAME=FILE"),
        (["--data=mine=none.txt"], "none.txt: no such file"),
        (["--choices=optimus:smollm2", "--decoder=somewhere"], "give --encoder=FOLDER"),
    ],
)
def test_mistakes(texts, more, message, tmp_path, capsys):
    words = [f"--data=mine={texts}", "--lines=5", f"--out={tmp_path}/out", "--dry_run"]
    if more[0].startswith("--data"):
        words = words[1:]
    assert own_text.main([*words, *more]) == 2
    assert message in capsys.readouterr().err


def test_published_weights_are_trimmed_to_the_training_lines(texts, tmp_path, capsys, monkeypatch):
    trims = []

    def trim(source, target, train):
        trims.append((source, train))
        target.mkdir()

    monkeypatch.setattr(experiment_data.trim, "trim", trim)
    for name in ("minilm", "smollm2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    folders = [f"--encoder={tmp_path}/minilm", f"--decoder={tmp_path}/smollm2"]
    choices = "--choices=optimus,lm:pretrained,optimus:smollm2"
    words = [f"--data=mine={texts}", "--lines=5", choices, f"--out={tmp_path}", *folders]
    assert own_text.main([*words, "--dry_run"]) == 0
    scratch, lm, vae = (
        dict(word.removeprefix("--config.").split("=", 1) for word in shlex.split(line)[3:])
        for line in capsys.readouterr().out.splitlines()
    )
    weights = tmp_path / "mine-5-weights"
    assert trims == [(tmp_path / "smollm2", [f"text {i}" for i in range(1000, 1005)])]
    assert (weights / "decoder").is_dir()
    assert (weights / "encoder").resolve() == tmp_path / "minilm"
    assert not any(key.startswith("init.") for key in scratch)
    assert lm["init.decoder"] == vae["init.decoder"] == str(weights / "decoder")
    assert vae["init.encoder"] == str(weights / "encoder") and "init.encoder" not in lm
    assert vae["model.encoder.dtype"] == "float32" and "model.encoder.dtype" not in lm


@pytest.fixture
def run(tmp_path):
    folder = finished_run(tmp_path / "mine-1000-auto", "optimus-tiny")
    path = folder / "eval/test.json"
    report = json.loads(path.read_text())
    report["card"]["weights"] = "step 20"
    names = ("bleu", "mi", "memorised", "memorised_test")
    report["metrics"] |= {name: {"value": 4.0, "se": None} for name in names}
    report["details"] = {"latent": {"saturated": True, "collapse_reasons": ["no active unit"]}}
    path.write_text(json.dumps(report))
    with (folder / "metrics.jsonl").open("a") as file:
        for step, nats in ((10, 60.0), (20, 50.0), (30, 55.0)):
            file.write(json.dumps({"step": step, "valid/neg_elbo": nats}) + "\n")
    return own_text.Job("mine", 1_000, "auto", ["--config=auto"], folder)


def test_the_row_is_of_the_measured_step(run, tmp_path):
    row = own_text.row_of(run)
    assert row["valid_neg_elbo"] == 50.0 and row["steps"] == 20 and row["bleu"] == 4.0
    assert row["minutes"] == 0.16  # (6 + 3.5) / 60
    rows = tmp_path / "rows.jsonl"
    results.replace(rows, [{**row, "bleu": 1.0}], own_text_table.key)
    results.replace(rows, [row], own_text_table.key)
    assert results.read_rows(rows) == [row]


def test_cells_not_run_say_so(run):
    text = own_text_table.table([own_text.row_of(run)])
    lines = [line for line in text.splitlines() if line.startswith("| mine")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    first = ["mine", "1,000", "`auto`", "**yes**", "≥ 4.00", "4.0", "4.0 % (4.0 %)", "50.00", "0.2"]
    assert cells[0] == first
    for line, (count, choice) in zip(
        cells[1:], (("1,000", "optimus"), ("5,000", "auto"), ("5,000", "optimus")), strict=True
    ):
        assert line == ["mine", count, f"`{choice}`", *["not measured"] * 6]
    assert "`python -m jvae.main --config=auto`" in text
    empty = own_text_table.table([])
    assert all(f"| {corpus} | 1,000 |" in empty for corpus in own_text_table.CORPORA)
    assert empty.endswith(" not measured |")


def test_a_run_that_was_not_evaluated(run):
    (run.folder / "eval/test.json").unlink()
    with pytest.raises(ConfigError, match="no eval/test.json"):
        own_text.row_of(run)
