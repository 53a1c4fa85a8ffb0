"""Signals: at once outside the loop, after the step within it, and back to normal afterwards."""

import os
import signal
import subprocess
import sys

import pytest

from jvae.training.preemption import CODE, Stop, Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_once_outside_the_loop(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=signal.Signals(number).name), Stop():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_after_the_step_within_it():
    with Stop() as stop, pytest.raises(Stopped, match="saved"), stop.at_steps():
        assert stop.asked(1) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(2) == "SIGTERM"
        raise Stopped("saved step 2")


def test_a_signal_that_the_last_step_missed_is_heard_at_the_end():
    with Stop() as stop, pytest.raises(Stopped), stop.at_steps():
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_keyboard_twice_does_not_wait():
    with Stop() as stop, pytest.raises(KeyboardInterrupt), stop.at_steps():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_no_handler_of_errors_takes_it_for_one():
    assert not issubclass(Stopped, Exception)


def test_one_that_was_not_entered_stops_nothing():
    assert Stop().asked(3) is None


BUSY = """
import hashlib, sys, threading
from jvae.training import preemption
preemption.GRACE_S = 0.3
stop = preemption.Stop()
with stop, stop.at_steps():
    {step}
    threading.Timer(0.2, lambda: print("busy", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # as a compilation: not a line of Python
    print("done")
    assert stop.asked(2) == "SIGTERM"
    raise preemption.Stopped("saved")
"""


def _busy(step: str, rounds: int) -> tuple[int, str, str]:
    script = BUSY.format(step=step, rounds=rounds)
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "busy\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def test_a_compilation_holds_nothing_up():
    code, out, err = _busy("pass", 10**9)
    assert (code, out) == (CODE, "")
    received, stopped = err.splitlines()  # the first at once
    assert received == "SIGTERM received, stopping"
    assert stopped == "SIGTERM: stopped; run the same command to resume"


def test_a_step_that_is_not_saved_is_waited_for():
    code, out, err = _busy("stop.asked(1)", 2 * 10**6)
    assert code == 1 and out == "done\n" and "Stopped: saved" in err
