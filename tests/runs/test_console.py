import contextlib
import errno
import io
import logging
import sys
from typing import TextIO, cast

import pytest

from jvae.runs.console import (
    Console,
    SafeStream,
    _clock_time,
    safe_streams,
    shown_log,
    write_result,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_keeps_the_bar_below_the_lines():
    stream, now = Terminal(), [0.0]
    console = Console(stream, 120, clock=lambda: now[0])
    console.progress(0)
    now[0] = 0.05
    console.progress(1)  # too soon to draw
    now[0] = 10.0
    console.progress(60)
    console.write(60, {"loss": 1.0})
    console.close()
    bar = "step 60/120 [" + "=" * 12 + " " * 12 + "] 6.0 steps/s, 0:10 left"
    start = "\rstep 0/120 [" + " " * 24 + "]"
    line = "\r" + "step 60/120, 0:10 left  loss 1".ljust(len(bar)) + "\n"
    assert stream.getvalue() == f"{start}\r{bar}{line}\r{bar}\n"


def test_lines_tell_the_time_left_and_no_bookkeeping():
    stream, now = io.StringIO(), [0.0]
    console = Console(stream, 120, clock=lambda: now[0])
    console.write(20, {"train/loss": 2.0, "train/finite": 1.0, "train/padding": 0.1})
    now[0] = 30.0
    console.write(80, {"train/loss": 1.5, "valid/mi": 3.0})
    console.write(120, {"train/loss": 1.0})
    assert stream.getvalue().splitlines() == [
        "step 20/120  train loss 2",
        "step 80/120, 0:20 left  train loss 1.5  valid mi 3",
        "step 120/120  train loss 1",
    ]


def test_time_left():
    assert _clock_time(59.9) == "0:59"
    assert _clock_time(3_600 + 61) == "1:01:01"


class Broken(io.StringIO):
    """A stream that is lost after its first line, as a pipe whose reader goes."""

    encoding = "ascii"

    def __init__(self, error):
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text):
        self.writes += 1
        if self.writes > 1:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")]
)
def test_a_lost_stream_is_lost_once(error):
    stream = Broken(error)
    console = Console(stream, 4)
    for step in range(1, 5):
        console.write(step, {"loss": 1.0})
        console.progress(step)
    console.close()
    assert stream.getvalue() == "step 1/4  loss 1\n" and stream.writes == 2


def test_no_stream_at_all():
    console = Console(None, None)
    console.write(1, {"loss": 1.0})
    console.close()
    assert not console.live


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", ">= 3 +- 1 ... ?"), ("latin-1", ">= 3 +- 1 ... ?"), ("utf-8", "≥ 3 ± 1 … 日")],
)
def test_letters_that_a_terminal_lacks(encoding, expected):
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding))
    print("≥ 3 ± 1 … 日", file=cast(TextIO, stream), flush=True)
    assert raw.getvalue().decode(encoding) == f"{expected}\n"


def test_streams_are_safe_for_a_while(monkeypatch):
    stream = Broken(BrokenPipeError())
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", None)
    with safe_streams():
        print("one", end="")
        print("two")
        print("three", file=sys.stderr, flush=True)
    assert sys.stdout is stream and stream.getvalue() == "one" and sys.stderr is None


def test_a_result_is_written_or_missed(monkeypatch):
    """Unlike what is shown on the way, it is all that the command was asked for."""
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", out)
    with safe_streams():
        write_result("abc\n")
        with pytest.raises(UnicodeEncodeError):
            write_result("±\n")
    assert out.buffer.getvalue() == b"abc\n"  # type: ignore[attr-defined]
    for error, lost in ((BrokenPipeError(), False), (OSError(errno.ENOSPC, "full"), True)):
        stream = Broken(error)
        stream.writes = 1
        monkeypatch.setattr("sys.stdout", stream)
        with safe_streams(), pytest.raises(OSError) if lost else contextlib.nullcontext():
            write_result("abc\n")
    monkeypatch.setattr("sys.stdout", None)
    with safe_streams(), pytest.raises(OSError, match="closed"):
        write_result("abc\n")


@pytest.mark.parametrize("named", ["", "jvae"])
def test_messages_are_shown_unless_a_level_is_set(named, capsys):
    log, own, root = logging.getLogger("jvae.some"), logging.getLogger("jvae"), logging.getLogger()
    repeats = logging.StreamHandler(sys.stderr)
    root.addHandler(repeats)  # as a library leaves it
    try:
        with shown_log():
            log.info("a reason")
        assert capsys.readouterr().err == "a reason\n"
        log.info("afterwards")
        level = logging.ERROR if named else logging.INFO
        before = logging.getLogger(named).level
        logging.getLogger(named).setLevel(level)
        with shown_log():
            assert own.handlers == [] and own.propagate
            log.warning("the application decides")
        logging.getLogger(named).setLevel(before)
        assert capsys.readouterr().err == ("" if named else "the application decides\n")
    finally:
        root.removeHandler(repeats)
