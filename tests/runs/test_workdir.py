"""One run per working directory, and files that are whole or not there."""

import os
import socket
import subprocess
import sys

import pytest

from jvae import config as configs
from jvae.errors import CheckpointError
from jvae.runs import workdir
from jvae.runs.workdir import CONFIG, LOCK, Lock, write_text


@pytest.fixture(params=["flock", "file"])
def way(request, monkeypatch):
    """Both ways to lock: by the kernel, and where the file system knows no `flock`."""
    if request.param == "file":
        monkeypatch.setattr(workdir, "_flock", lambda file: False)
    return request.param


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with Lock(tmp_path / "run") as first:
        first.take()
        first.take()
        with (
            Lock(tmp_path / "run") as second,
            pytest.raises(CheckpointError, match=rf"process {os.getpid()} on "),
        ):
            second.take()
    with Lock(tmp_path / "run") as third:
        third.take()


def holder() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_lock_whose_process_is_gone_is_stale(tmp_path, way):
    gone = holder()
    gone.communicate()
    (tmp_path / LOCK).write_text(f"{socket.gethostname()} {gone.pid}\n")
    with Lock(tmp_path) as lock:
        lock.take()
        assert (tmp_path / LOCK).read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    assert (tmp_path / LOCK).read_text() == ""


def test_without_flock_a_living_process_or_another_host_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "_flock", lambda file: False)
    living = holder()
    for words in (f"{socket.gethostname()} {living.pid}\n", "elsewhere 1\n"):
        (tmp_path / LOCK).write_text(words)
        with Lock(tmp_path) as lock, pytest.raises(CheckpointError, match="remove .*lock"):
            lock.take()
    living.communicate()


def test_a_lock_cut_short_by_a_kill_is_stale(tmp_path, way):
    (tmp_path / LOCK).write_text("half")
    with Lock(tmp_path) as lock:
        lock.take()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to .*file/run"):
        Lock(tmp_path / "file/run").take()
    with pytest.raises(CheckpointError, match="cannot write to .*file/run"):
        write_text(tmp_path / "file/run/config.json", "{}")


def _changed(*changes: str):
    return configs.apply_overrides(configs.load("lm:tiny"), changes)


def test_what_may_change_between_two_calls(tmp_path):
    write_text(tmp_path / CONFIG, configs.to_json(_changed("data.train=a.txt")))
    workdir.check(tmp_path, _changed("optim.lr=1"))  # no checkpoint: nobody's
    (tmp_path / "ckpt/last/4.orbax-checkpoint-tmp-1").mkdir(parents=True)
    workdir.check(tmp_path, _changed("optim.lr=1"))
    (tmp_path / "ckpt/last/4").mkdir()
    may = ("evals.samples=3", "decode.top_k=2", "mesh.data=1", "train.steps=7", "data.workers=2")
    workdir.check(tmp_path, _changed("data.train=a.txt", *may))
    with pytest.raises(CheckpointError) as caught:
        workdir.check(tmp_path, _changed("data.train=b.txt", "optim.lr=1", *may))
    message = str(caught.value)
    assert "optim.lr: " in message and " -> 1.0" in message
    assert "data.train: ('a.txt',) -> ('b.txt',)" in message and "no record of its text" in message
    moved = _changed("data.train=b.txt", "data.format=tsv")
    workdir.check(tmp_path, moved, recorded=True)
    assert set(workdir.moved(tmp_path, moved)) == {"data.train", "data.format"}
    with pytest.raises(CheckpointError, match="seed: 0 -> 1"):
        workdir.check(tmp_path, _changed("data.train=b.txt", "seed=1"), recorded=True)


def test_checkpoints_may_be_of_another_config_than_their_folder(tmp_path):
    config = _changed("data.train=a.txt")
    write_text(tmp_path / CONFIG, configs.to_json(config))
    (tmp_path / "ckpt/last/4").mkdir(parents=True)
    # Where the config is 0, checkpoints keep what the data say.
    settled = _changed("data.train=a.txt", "data.dec_row=32", "data.slots=3")
    workdir.check(tmp_path, config, [settled])
    with pytest.raises(CheckpointError, match="data.dec_row: 32 -> 16"):
        workdir.check(tmp_path, _changed("data.train=a.txt", "data.dec_row=16"), [settled])
    with pytest.raises(CheckpointError, match="seed: 1 -> 0"):
        workdir.check(tmp_path, config, [settled, _changed("data.train=a.txt", "seed=1")])


def test_text_that_moved_is_all_that_the_run_takes_over(tmp_path):
    write_text(tmp_path / CONFIG, configs.to_json(_changed("data.train=a.txt")))
    workdir.move(tmp_path, _changed("data.train=b.txt", "evals.samples=3", "train.steps=9"))
    config = workdir.saved_config(tmp_path)
    assert configs.to_json(config) == configs.to_json(_changed("data.train=b.txt"))
