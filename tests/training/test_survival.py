"""Faults in a small run, one after another, through the command line: each ends with the exit code
and the message that launch/README.md says, and in the end nothing differs from an unbroken run.
"""

import gc
import json
import logging
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import jax
import pytest

from jvae import config as configs
from jvae.cli.main import main
from jvae.data import grammar
from jvae.errors import CheckpointError, WeightsError
from jvae.runs import metrics
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.workdir import Lock, saved_config
from jvae.training import init_params
from tests.tools.interrupted import at_step, state, stop_at

SMALL = (
    "--config=lm:tiny",
    "--config.model.decoder.layers=1",
    "--config.model.decoder.width=16",
    "--config.model.decoder.mlp=16",
    "--config.model.decoder.heads=2",
    "--config.optim.warmup_steps=2",
    "--config.data.row_tokens=32",
    "--config.data.batch_rows=8",
    "--config.data.vocab=300",
    "--config.train.steps=12",
    "--config.train.log_every=3",
    "--config.train.check_every=4",
    "--config.train.tensorboard=false",
    "--config.evals.samples=1",
    "--config.evals.sentences=4",
    "--config.evals.generate=4",
    "--config.evals.interpolations=0",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "mine.txt"
    path.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 200)))
    return path


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(corpus, folder)) == 0
    return folder


def command(corpus: Path, folder: Path, *more: str) -> list[str]:
    mesh = () if any("mesh" in word for word in more) else ("--config.mesh.data=1",)
    return [*SMALL, f"--config.data.train={corpus}", f"--workdir={folder}", *mesh, *more]


def steps(folder: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (folder / "ckpt/last").iterdir() if path.name.isdigit()
    )


def lines(folder: Path) -> list[dict]:
    """What the metrics file says, times left out."""
    return [
        {name: value for name, value in line.items() if "/time/" not in name}
        for line in metrics.read_lines(folder / "metrics.jsonl")
    ]


def flip(folder: Path):
    file = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def full_disk(test):
    """Orbax's threads and event loops die of a full disk before it notifies the waiting thread."""
    for kind in ("UnhandledThreadException", "UnraisableException"):
        test = pytest.mark.filterwarnings(f"ignore::pytest.Pytest{kind}Warning")(test)
    return test


@pytest.mark.slow
@full_disk
def test_every_fault_ends_with_its_code_and_none_with_a_loss(
    corpus, whole, tmp_path, monkeypatch, capsys, caplog
):
    broken = tmp_path / "broken"
    caplog.set_level(logging.INFO)

    # SIGTERM between two log lines.
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert main(command(corpus, broken)) == 75
    assert "SIGTERM: saved step 5 of 12" in capsys.readouterr().err
    assert steps(broken) == [4, 5] and not (broken / "eval").exists()
    # What is measured half-way ends nothing, and lost tokenizers come back as they were.
    assert main([f"--workdir={broken}", "--mode=eval"]) == 0
    card = json.loads((broken / "eval/test.json").read_text())["card"]
    assert card["weights"] == "step 4"
    shutil.rmtree(broken / "tokenizers")

    # A disk that is full from step 6 on: no file may grow past 16 kB.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))  # noqa: E731
    with monkeypatch.context() as patch:
        at_step(patch, 6, full)
        try:
            assert main(command(corpus, broken)) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # what is left of the save complains here, not in a later test
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and ("cannot save" in error or "are kept" in error)
    assert steps(broken) == [4, 5]

    # The keyboard, and a newest checkpoint that the disk has damaged.
    with monkeypatch.context() as patch:
        stop_at(patch, 10, signal.SIGINT)
        assert main(command(corpus, broken)) == 75
    assert steps(broken) == [8, 10]
    flip(broken / "ckpt/last/10")
    caplog.clear()

    # Another run in the folder; text that has gone. Neither touches what is there.
    with Lock(broken) as lock:
        lock.take()
        assert main(command(corpus, broken)) == 2
    assert "another run trains here" in capsys.readouterr().err
    hidden = corpus.with_suffix(".hidden")
    corpus.rename(hidden)
    assert main(command(corpus, broken)) == 2
    assert str(corpus) in capsys.readouterr().err
    hidden.rename(corpus)
    assert steps(broken) == [8, 10]

    assert main(command(corpus, broken)) == 0
    assert any("last/10: incomplete, skipped" in message for message in caplog.messages)
    assert "resumed at step 8 of 12" in caplog.messages
    summary = next(m for m in caplog.messages if m.startswith("goodput of "))
    for part in ("training", "compiling", "evaluating", "saving", "waiting for data", "starting"):
        assert f"{part} " in summary
    assert lines(broken) == lines(whole)
    assert state(broken) == state(whole)
    reports = [json.loads((run / "eval/test.json").read_text()) for run in (whole, broken)]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    tokenizer = "tokenizers/decoder/tokenizer.json"
    assert (broken / tokenizer).read_text() == (whole / tokenizer).read_text()


@pytest.mark.slow
def test_a_finished_run_trains_further_and_is_measured_again(
    corpus, whole, tmp_path, monkeypatch, capsys, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert main(command(corpus, folder, "--config.train.steps=8")) == 2
    error = capsys.readouterr().err
    assert "train.steps is 8, so the run ends at step 8, but 12 steps are done" in error
    other = ("--config.train.steps=8", "--config.optim.lr=0.5")
    assert main(command(corpus, folder, *other)) == 2
    assert "holds a run of another config (optim.lr" in capsys.readouterr().err
    measured = []

    def evaluate(run, mesh, params, step):
        measured.append(step)
        return type("Report", (), {"rows": (), "table": lambda self: "the table"})()

    monkeypatch.setattr("jvae.evals.evaluation.evaluate", evaluate)
    assert main(command(corpus, folder)) == 0
    assert "is finished" in capsys.readouterr().out and not measured
    caplog.set_level(logging.INFO)
    longer = command(corpus, folder, "--config.train.steps=16")
    assert main(longer) == 0
    assert "resumed at step 12 of 16" in caplog.messages
    assert any(m.startswith("train.steps was 12 and is now 16: all sche") for m in caplog.messages)
    assert steps(folder) == [12, 16] and saved_config(folder).train.steps == 16
    # The table there is that of step 12: the better parameters of step 16 have none yet.
    assert main(longer) == 0
    assert measured == [16, 16]
    # By the schedule of 12 steps the learning rate would be 0 by now.
    before, after = state(whole), state(folder)
    assert any(after[name] != before[name] for name in before if name.startswith("params/"))


@pytest.mark.slow
def test_no_whole_checkpoint_and_a_signal_in_the_evaluation(corpus, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert main(command(corpus, folder, "--config.optim.warmup_steps=-1")) == 2
    assert "warmup_steps" in capsys.readouterr().err and not folder.exists()
    # What a start without a checkpoint has left, of another config, claims nothing.
    folder.mkdir()
    (folder / "config.json").write_text(configs.to_json(configs.load("optimus:tiny")))
    (folder / "tokenizers/decoder").mkdir(parents=True)
    (folder / "tokenizers/decoder/tokenizer.json").write_text("not one")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert main(command(corpus, folder)) == 75
    flip(folder / "ckpt/last/2")
    assert main(command(corpus, folder)) == 2
    assert "no checkpoint that can be read (steps: 2)" in capsys.readouterr().err
    assert steps(folder) == [2]  # for its owner to judge

    shutil.rmtree(folder / "ckpt")
    with monkeypatch.context() as patch:
        kill = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr("jvae.evals.evaluation.evaluate", kill)
        assert main(command(corpus, folder)) == 75
    assert "SIGTERM: stopped; run the same command to resume" in capsys.readouterr().err
    assert steps(folder) == [8, 12] and not (folder / "eval").exists()
    assert main(command(corpus, folder)) == 0


def test_prepared_data_that_vanishes_is_named(corpus, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    words = command(corpus, tmp_path / "run", f"--config.data.cache={cache}")
    monkeypatch.setattr(
        "jvae.data.records._open", lambda folder: (_ for _ in ()).throw(OSError("x"))
    )
    assert main(words) == 2
    assert "can no longer be read (x)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_run_moves_between_device_counts(corpus, tmp_path, monkeypatch):
    """8 devices, then 2, then 4 in another shape: the curve of one that stayed."""
    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    assert main(command(corpus, stayed, "--config.mesh.data=8")) == 0
    for step, mesh in ((5, ("data=8",)), (9, ("data=1", "fsdp=2"))):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            words = [f"--config.mesh.{axis}" for axis in mesh]
            assert main(command(corpus, moved, *words)) == 75
    assert main(command(corpus, moved, "--config.mesh.data=2", "--config.mesh.tensor=2")) == 0
    for got, want in zip(lines(moved), lines(stayed), strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-5), (want["step"], name)


@pytest.mark.slow
@full_disk
def test_a_failing_save_in_the_background_keeps_those_before(tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (50_000,))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match="those before it are kept|cannot save step"):
        try:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(1, state, {})
                checkpoints.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
                checkpoints.save(2, state, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(jax.eval_shape(lambda: state))[1]["step"] == 1


def test_a_folder_on_nothing_writable(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(corpus, tmp_path / "file/run")) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["initial_params", "Writer"])
def test_a_start_that_fails_reads_no_further(corpus, tmp_path, monkeypatch, when):
    """The stream is open by then: its thread ends with the run, not when memory is collected."""

    def fail(*args, **kwargs):
        streams.extend(thread for thread in threading.enumerate() if thread.name == "jvae-batches")
        raise WeightsError("no such weights")

    streams = []
    module = init_params if when == "initial_params" else metrics
    monkeypatch.setattr(module, when, fail)
    gc.disable()
    try:
        assert main(command(corpus, tmp_path / "run")) == 2
        assert streams and not any(thread.is_alive() for thread in streams)
    finally:
        gc.enable()
