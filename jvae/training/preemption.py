"""Handles requests to stop: SIGTERM from a scheduler, or SIGINT from the keyboard.

During training, the run saves a checkpoint after the current step; elsewhere the process can stop
at once without losing anything. Either way it exits with `CODE`; run the same command to resume.

Python runs signal handlers only between two of its own instructions, so a long compilation would
delay them. In that case a separate thread ends the process, provided nothing is unsaved.
"""

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, run it again
GRACE_S = 5.0  # time for the main thread to handle a signal


class Stopped(BaseException):
    """Raised if work ends early because of a request to stop. Like KeyboardInterrupt it is not an
    Exception, so that error handlers do not catch it.
    """


class Stop:
    """Listens for the signals while entered as a context; otherwise it never stops anything.

    In a host process such as a notebook's, no thread ends the process.

    Several processes must stop after the same step. For them, JAX's preemption service listens for
    SIGTERM instead of this class and agrees on that step; SIGINT then ends a process as usual.
    """

    def __init__(self, own_process: bool = True) -> None:
        self.from_within = False  # whether `ask` was called before any signal
        self._own_process = own_process
        self._asked: str | None = None
        self._at_steps = False
        self._unsaved = False  # whether any step has been done
        self._noticed = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[int, int] | None = None  # its write end, and the previous one

    def __enter__(self) -> "Stop":
        one_process = jax.process_count() == 1
        if one_process and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        if self._before and self._own_process:
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._wakeup = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._wakeup is not None:
            write, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(write)  # this ends the thread
            self._wakeup = None

    @contextmanager
    def at_steps(self) -> Generator[None, None, None]:
        """Defers signals to the next call of `asked`, or to the end of its body."""
        self._at_steps = True
        try:
            yield
        finally:
            self._at_steps = False
        if self._asked:
            raise self._stopped()

    def ask(self, who: str) -> None:
        """Requests saving and stopping, like a signal; with several processes, in all of them."""
        if self._asked is None:
            self._asked, self.from_within = who, True

    def asked(self, step: int) -> str | None:
        """The signal after which to stop once this step is saved; the same on all processes.

        Every process must call it after every step.
        """
        self._unsaved = True
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM.name
        return self._asked

    def _watch(self, read: int) -> None:
        """Reports the first signal at once, and ends the process if the main thread cannot handle
        it and has nothing to save.
        """
        first = True
        while heard := os.read(read, 1):
            if heard[0] not in (signal.SIGTERM, signal.SIGINT):
                continue
            if first:
                name = signal.Signals(heard[0]).name
                print(f"{name} received, stopping", file=sys.stderr, flush=True)
                first = False
            if self._noticed.wait(GRACE_S) or (self._at_steps and self._unsaved):
                continue
            name = signal.Signals(heard[0]).name
            print(f"{name}: stopped; run the same command to resume", file=sys.stderr, flush=True)
            os._exit(CODE)
        os.close(read)

    def _heard(self, number: int, _: object) -> None:
        self._noticed.set()
        again, self._asked = self._asked, signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._at_steps:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(f"{self._asked}: stopped; run the same command to resume")
