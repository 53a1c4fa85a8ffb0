"""One run per working directory, and files that are whole or not there."""

import os
import socket
import subprocess
import sys

import pytest

from jvae.errors import CheckpointError
from jvae.runs import workdir
from jvae.runs.workdir import LOCK, Lock, write_text


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
