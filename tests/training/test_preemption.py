"""Signals: at once outside the loop, after the step within it, and back to normal afterwards."""

import os
import signal

import pytest

from jvae.training.preemption import Stop, Stopped


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
