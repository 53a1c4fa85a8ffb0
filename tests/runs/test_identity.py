"""A run opened again with other text, tokenizers or random numbers: each difference is refused by
name, the same content in another place is not.
"""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import jax
import pytest

import jvae
from jvae import config as configs
from jvae.cli.main import main
from jvae.data import grammar, sources, tokenizers
from jvae.data.content import content
from jvae.data.corpus import survey
from jvae.data.formats import Reader
from jvae.errors import CheckpointError, WeightsError
from jvae.runs import build, identity, metrics
from jvae.runs.workdir import saved_config

SMALL = (
    *("--config=lm:tiny", "--config.mesh.data=1", "--config.train.tensorboard=false"),
    *("--config.model.decoder.layers=1", "--config.model.decoder.width=16"),
    *("--config.model.decoder.mlp=16", "--config.model.decoder.heads=2"),
    *("--config.data.row_tokens=32", "--config.data.batch_rows=8", "--config.data.vocab=300"),
    *("--config.train.steps=4", "--config.train.check_every=4", "--config.train.log_every=2"),
    *("--config.evals.samples=1", "--config.evals.sentences=4", "--config.evals.generate=4"),
    *("--config.evals.interpolations=0", "--config.optim.warmup_steps=1"),
)
LINES = [s.text for s in grammar.corpus("train", 120)]


def write(path: Path, lines) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def words(root: Path) -> list[str]:
    files = (f"--config.data.train={root / 'mine.txt'}", f"--workdir={root / 'run'}")
    return [*SMALL, *files, f"--config.data.decoder_tokenizer={root / 'tokenizer'}"]


def stopped_at(step: int, argv: list[str]) -> int:
    """The exit code of a command that gets a SIGTERM at a step."""
    plain = metrics.Writer.progress

    def progress(self, done):
        plain(self, done)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Writer, "progress", progress)
        return main(argv)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with a text, a tokenizer, and a run of both that was stopped half-way."""
    root = tmp_path_factory.mktemp("stopped")
    write(root / "mine.txt", LINES)
    tokenizers.train_bpe(LINES, 300).save(root / "tokenizer")
    assert stopped_at(2, words(root)) == 75
    return root


@pytest.fixture
def root(stopped, tmp_path) -> Path:
    """The same to be changed, with the paths of the first one in its config."""
    shutil.copytree(stopped, tmp_path / "copy")
    path = tmp_path / "copy/run/config.json"
    path.write_text(path.read_text().replace(str(stopped), str(tmp_path / "copy")))
    edit_metas(
        tmp_path / "copy",
        lambda meta: meta.update(
            config=meta["config"].replace(str(stopped), str(tmp_path / "copy"))
        ),
    )
    return tmp_path / "copy"


def refused(root: Path, capsys, *parts: str) -> str:
    """What both a resume and an evaluation say, in one message each, leaving all as it was."""
    before = {p: p.read_bytes() for p in (root / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    for argv in (words(root), [f"--workdir={root / 'run'}", "--mode=eval"]):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        assert all(part in error for part in parts), error
    after = {p: p.read_bytes() for p in (root / "run").rglob("*") if p.is_file()}
    assert {p: v for p, v in after.items() if p.name != "lock"} == {
        p: v for p, v in before.items() if p.name != "lock"
    }
    return error


def edit_metas(root: Path, edit):
    """Changes what the checkpoints say of themselves."""
    for path in (root / "run/ckpt").rglob("meta/metadata"):
        meta = json.loads(path.read_text())
        meta.pop("meta_sha256", None)  # as older versions left it
        edit(meta)
        path.write_text(json.dumps(meta))


def reopened(root: Path) -> build.Run:
    """What a command that resumes the run works with."""
    folder = root / "run"
    saved = identity.saved(folder)
    assert saved is not None
    return build.open_run(saved_config(folder), folder, saved)


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: ["one more", *lines],
        lambda lines: [*lines[:60], *lines[61:]],
        sorted,
        lambda lines: [*lines[:30], "another man is here", *lines[31:]],
        lambda lines: [*lines, "one more"],
        lambda lines: [*lines, lines[0]],
        lambda lines: [lines[0] + " again", *lines[1:]],
    ],
    ids=["prepended", "removed", "sorted", "replaced", "appended", "duplicated", "reworded"],
)
def test_another_text_is_refused_by_name(root, capsys, change):
    changed = change(LINES)
    assert changed != LINES
    write(root / "mine.txt", changed)
    error = refused(root, capsys, "train has ", " examples (SHA-256 ", "in training it had 109")
    assert "bring back the text of its training" in error and str(root / "mine.txt") in error
    if changed[1:] != LINES[1:] and changed[0] != LINES[0]:  # all lines moved, those held out too
        assert "valid has" in error and "what is held out of train (valid, test) may" in error


def test_a_tokenizer_that_changed_is_refused(root, capsys):
    other = tokenizers.train_bpe([line.upper() for line in LINES], 300)
    other.save(root / "run/tokenizers/decoder")
    refused(root, capsys, "the decoder tokenizer (", "is not that of training", "tokenizers folder")
    with pytest.raises(WeightsError, match="the decoder tokenizer .* is not that of training"):
        jvae.load(root / "run")
    # The folder lost, and what it was opened from is another one by now.
    shutil.rmtree(root / "run/tokenizers")
    other.save(root / "tokenizer")
    refused(root, capsys, "the decoder tokenizer (", "is not that of training")


def test_a_lost_tokenizer_that_is_the_same_again_is_accepted(root):
    shutil.rmtree(root / "run/tokenizers")
    named = tokenizers.load(root / "tokenizer", "decoder")
    assert reopened(root).decoder.fingerprint == named.fingerprint


def test_checkpoints_of_another_run_are_refused(root, capsys):
    def other(meta):
        config = json.loads(meta["config"])
        meta["config"] = json.dumps(config | {"seed": 1})

    edit_metas(root, other)
    refused(root, capsys, "holds a run of another config", "seed: 1 -> 0")


@pytest.mark.parametrize(
    "flag, value", [("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg")]
)
def test_another_random_stream_is_refused(root, capsys, flag, value):
    was = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        refused(
            root, capsys, f"{flag} is {value!r}, in training it was", f"set {flag.upper()}={was}"
        )
    finally:
        jax.config.update(flag, was)


def test_other_versions_only_warn(root, caplog):
    edit_metas(root, lambda meta: meta[identity.KEY]["versions"].update(flax="0.1"))
    reopened(root)
    (warning,) = warnings_of(caplog)
    assert "written with other versions (flax 0.1 -> " in warning


def test_the_same_text_elsewhere_in_another_format_is_accepted(root, capsys, monkeypatch):
    report = type("Report", (), {"table": lambda self: "the table"})()
    monkeypatch.setattr("jvae.evals.evaluation.evaluate", lambda *_, **__: report)
    rows = [json.dumps({"said": line}) for line in LINES]
    write(root / "moved.jsonl", rows)
    (root / "mine.txt").unlink()
    moved = (f"--config.data.train={root / 'moved.jsonl'}", "--config.data.text=said")
    folder = f"--workdir={root / 'run'}"
    assert main([folder, "--mode=eval"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([folder, "--mode=eval", *moved]) == 0
    assert saved_config(root / "run").data.train == (str(root / "moved.jsonl"),)
    # The run takes the new place over, and only that.
    assert main([folder, "--mode=eval", "--config.evals.samples=2"]) == 0
    assert saved_config(root / "run").evals.samples == 1
    capsys.readouterr()
    write(root / "moved.jsonl", rows[1:])
    assert main([folder]) == 2
    assert "train has" in capsys.readouterr().err


def test_a_run_without_a_record_opens_with_one_warning(root, caplog, capsys):
    edit_metas(root, lambda meta: meta.pop(identity.KEY))
    jvae.load(root / "run")
    shutil.copy(root / "mine.txt", root / "moved.txt")
    moved = f"--config.data.train={root / 'moved.txt'}"
    assert main([f"--workdir={root / 'run'}", "--mode=eval", moved]) == 2
    assert "it has no record of its text, which must not move" in capsys.readouterr().err
    caplog.clear()
    run = reopened(root)
    (warning,) = warnings_of(caplog)
    assert "was written before runs kept a record of their data" in warning
    assert set(run.record()["data"]) == {"train", "valid", "test"}


def test_what_counts_as_the_same_content(tmp_path):
    def digest(name: str, text: str, **reader) -> str:
        (tmp_path / name).write_text(text)
        return content(survey(tmp_path / name, Reader(**reader), tmp_path / "c"), tmp_path / "c")[0]

    plain = digest("a.txt", "x\ny\n")
    assert digest("b.txt", "x\ny") == plain  # no line end at the end
    assert digest("c.tsv", "pos\tx\nneg\ty\n", label="0") == plain  # labels are not trained on
    assert digest("d.jsonl", '{"text": "x"}\n{"text": "y"}\n') == plain
    assert content(sources.lines_of(["x", "y"], "z"), tmp_path).sha256 == plain
    others = {
        digest("e.txt", "y\nx\n"),
        digest("f.txt", "xy\n"),
        digest("g.txt", "x\ny\ny\n"),
        digest("h.tsv", "s\tx\nt\ty\n", source="0"),
        digest("i.tsv", "sx\tx\nt\ty\n", source="0"),
    }
    assert len(others) == 5 and plain not in others
    # Kept by content of the file: the same again, and what is cut short is taken again.
    (kept, *_) = sorted((tmp_path / "c/contents").iterdir())
    before = kept.read_text()
    kept.write_text(before[:10])
    assert digest("a.txt", "x\ny\n") == plain and digest("d.jsonl", '{"text": "q"}\n') != plain
    for name, text in (("a.txt", "x\ny\n"), ("e.txt", "y\nx\n"), ("f.txt", "xy\n")):
        digest(name, text)


def test_swapped_split_files_are_refused(tmp_path):
    files = {
        name: write(tmp_path / f"{name}.txt", LINES[first : first + 40])
        for name, first in (("train", 0), ("valid", 40), ("test", 80))
    }
    config = configs.load("lm:tiny")
    actual = {name: survey(path, Reader(), tmp_path / "c") for name, path in files.items()}
    tokenizer = tokenizers.train_bpe(LINES, 300)
    record = identity.record(config, actual, tokenizer.for_role("encoder"), tokenizer)
    assert record["held_out"] == []
    meta = {"step": 1, "config": "{}", identity.KEY: json.loads(json.dumps(record))}
    saved = identity.Saved(tmp_path, (meta,), None)
    identity.check_data(saved, config, actual)
    actual["valid"], actual["test"] = actual["test"], actual["valid"]
    with pytest.raises(CheckpointError, match="valid has .* test has ") as caught:
        identity.check_data(saved, config, actual)
    assert "train has" not in str(caught.value) and "held out" not in str(caught.value)
