"""Devices, pipes and links stay what they are; files are whole or absent."""

import errno
import os
import stat
import threading

import pytest

from jvae.errors import CheckpointError
from jvae.runs import output, workdir


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "new" / ("n" * 250)
    output.write(path, "one ±\n")
    assert path.read_bytes() == "one ±\n".encode()
    path.chmod(0o640)
    output.write(path, b"two")
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_links_are_followed(tmp_path):
    target, link, dangling = (tmp_path / name for name in ("target", "link", "dangling"))
    target.write_text("old")
    link.symlink_to("target")
    dangling.symlink_to("absent")
    for path, want in ((link, target), (dangling, tmp_path / "absent")):
        workdir.write_text(path, "new")
        assert path.is_symlink() and want.read_text() == "new" and not want.is_symlink()


def test_a_pipe_stays_one(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    output.write(pipe, b"x" * 300_000)  # more than a pipe holds
    reader.join()
    assert got == [b"x" * 300_000] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_devices_stay_what_they_are():
    output.write(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(OSError) as caught:
        output.write("/dev/full", "x")
    assert caught.value.errno == errno.ENOSPC and stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_file_behind_a_descriptor_is_appended_to(tmp_path):
    """As with /dev/stdout after `>> file`."""
    with (tmp_path / "log").open("ab") as file:
        file.write(b"before\n")
        file.flush()
        output.write(f"/dev/fd/{file.fileno()}", "after\n")
    assert (tmp_path / "log").read_bytes() == b"before\nafter\n"


def test_what_cannot_be_replaced_is_written_in_place(tmp_path, monkeypatch):
    """A file that is mounted by itself, or of a folder that is not writable."""
    path = tmp_path / "mounted"
    path.write_text("a longer text")

    def busy(*_):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "replace", busy)
    output.write(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="busy"):
        output.write(tmp_path / "absent", "new")
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write to"):
        workdir.write_text(tmp_path, "x")
    assert list(tmp_path.parent.glob(".*.part")) == []
