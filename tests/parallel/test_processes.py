"""Processes that are one program: real ones, joined by launch/local.sh, against one alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jvae.cli.main import main
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.parallel import processes
from jvae.runs import metrics

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config=optimus:tiny",
    "--config.model.encoder.layers=1",
    "--config.model.encoder.width=16",
    "--config.model.encoder.mlp=16",
    "--config.model.decoder.layers=1",
    "--config.model.decoder.width=16",
    "--config.model.decoder.mlp=16",
    "--config.model.latent=4",
    "--config.optim.warmup_steps=2",
    "--config.data.row_tokens=32",
    "--config.data.batch_rows=8",
    "--config.data.vocab=300",
    "--config.train.log_every=1",
    "--config.train.tensorboard=false",
    "--config.evals.samples=3",
    "--config.evals.sentences=8",
    "--config.evals.generate=8",
    "--config.evals.interpolations=2",
)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--processes=2"], "go together"),
        (["--coordinator=localhost:1", "--process=0"], "go together"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "expected 0 to 1"),
    ],
)
def test_half_of_the_flags_is_an_error(words, message, capsys):
    assert main(["--config=optimus", *words]) == 2
    assert message in capsys.readouterr().err


def test_where_there_is_one_process_nothing_is_joined(monkeypatch):
    for name in ("SLURM_STEP_NODELIST", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("joined"))
    processes.join(None, None, None)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.join(None, None, None)
    processes.wait("nobody")
    processes.agree("text", "x")
    assert processes.first()


def test_slurm_is_found(monkeypatch):
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: joined.append(args))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    processes.join(None, None, None)
    assert joined == [(None, None, None)]


def test_others_that_cannot_be_reached(monkeypatch):
    def fail(*_):
        raise RuntimeError("no route")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(ConfigError, match="cannot join the other processes .no route."):
        processes.join("localhost:1", 2, 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "mine.txt"
    path.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 200)))
    return path


def start(corpus: Path, folder: Path, count: int, devices: int, *more: str) -> subprocess.Popen:
    words = [*SMALL, f"--config.data.train={corpus}", f"--workdir={folder}", *more]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    script = [ROOT / "launch/local.sh", f"--processes={count}", f"--devices={devices}"]
    return subprocess.Popen(
        [*script, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(run: subprocess.Popen, seen: Callable[[], object]) -> None:
    """Until something is seen, or the run ends or takes too long; the caller then finds out."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and run.poll() is None and not seen():
        time.sleep(0.05)


def lines(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if "/time/" not in name}
        for line in metrics.read_lines(folder / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.multidevice
def test_two_processes_are_one_run(corpus, tmp_path):
    """2 x 2 devices and 1 x 4: one curve, one report, one set of files."""
    sizes = ("--config.train.steps=8", "--config.train.check_every=4", "--config.mesh.fsdp=2")
    reports = []
    for count in (1, 2):
        run = start(corpus, tmp_path / str(count), count, 4 // count, *sizes)
        output, said = run.communicate()
        assert run.returncode == 0, said
        assert output.count("Files: ") == 1  # one process prints the table
        reports.append(json.loads((tmp_path / str(count) / "eval/test.json").read_text()))
    for want, got in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert want.keys() == got.keys()
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-5), (want["step"], name)
    one, two = ({k: m["value"] for k, m in report["metrics"].items()} for report in reports)
    assert one.keys() == two.keys()
    for name in ("nll_3", "rec", "kl"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert [path.name for path in sorted((tmp_path / "1").rglob("*.txt"))] == [
        path.name for path in sorted((tmp_path / "2").rglob("*.txt"))
    ]


@pytest.mark.slow
@pytest.mark.multidevice
def test_one_process_told_to_stop_stops_all_at_one_step(corpus, tmp_path):
    sizes = ("--config.train.steps=1500", "--config.train.check_every=1500")
    run = start(corpus, tmp_path / "run", 2, 1, *sizes)
    log = tmp_path / "run/metrics.jsonl"
    wait_for(run, lambda: log.exists() and log.stat().st_size)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate()
    assert run.returncode == 75, said
    (step,) = (int(path.name) for path in (tmp_path / "run/ckpt/last").iterdir())
    assert 0 < step < 1500 and lines(tmp_path / "run")[-1]["step"] == step
    assert said.count(f"saved step {step} of 1500") == 2


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_process_that_dies_ends_the_run_and_the_same_command_goes_on(corpus, tmp_path):
    sizes = ("--config.train.steps=1500", "--config.train.check_every=20")
    run = start(corpus, tmp_path / "run", 2, 1, *sizes)
    last = tmp_path / "run/ckpt/last"
    wait_for(run, lambda: last.exists() and saved(last))
    os.kill(int((tmp_path / "run/lock").read_text().split()[1]), signal.SIGKILL)
    _, said = run.communicate(timeout=300)
    assert run.returncode not in (0, 75), said
    before = saved(last)
    assert before, said
    again = start(corpus, tmp_path / "run", 2, 1, *sizes)
    wait_for(again, lambda: lines(tmp_path / "run")[-1]["step"] > before[-1] + 20)
    again.send_signal(signal.SIGTERM)
    _, said = again.communicate()
    assert again.returncode == 75, said
    assert f"resumed at step {before[-1]} of 1500" in said


def saved(last: Path) -> list[int]:
    return sorted(int(path.name) for path in last.iterdir() if path.name.isdigit())


APART = """
import os, sys
import numpy as np, jax
from jvae.parallel import mesh as meshes, processes
from jvae.evals.collect import to_host
processes.join(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
a, b, c, d = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
mesh = jax.sharding.Mesh(np.array([c, a, b, d]).reshape(4, 1, 1), meshes.AXES)
part, parts = meshes.row_part(mesh, 8)
assert parts == 2
x_bt = np.arange(8 * 3).reshape(2, 4, 3)[part]
sent = to_host(meshes.to_device(x_bt, mesh))
whole = np.arange(8 * 3).reshape(8, 3)
assert sorted(map(tuple, sent)) == sorted(map(tuple, whole)), sent
first = np.concatenate([sent[:2], sent[6:]])
assert np.array_equal(first, whole[:4]) or np.array_equal(first, whole[4:]), sent
"""


@pytest.mark.slow
@pytest.mark.multidevice
def test_devices_of_a_process_need_not_be_neighbours(tmp_path):
    """Mesh order 1, 0, 0, 1: every row arrives once, each half in the order of its process."""
    port = str(20_000 + os.getpid() % 20_000)
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", APART, port]
    both = [subprocess.Popen([*command, str(i)], env=env) for i in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
