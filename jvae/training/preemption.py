"""Being told to stop: SIGTERM from a scheduler, or SIGINT from the keyboard, once.

While training the answer is a checkpoint after the step that runs; anywhere else nothing is lost by
stopping at once. Either way the process ends with `CODE`, and the same command goes on.

Python runs handlers of signals between two of its own instructions, so a compilation of minutes
would hold one up. A thread of its own ends the process then, where nothing is unsaved.
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

CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, start it again
GRACE_S = 5.0  # for the main thread to hear of a signal


class Stopped(BaseException):
    """Work that ended early because the process was told to; like KeyboardInterrupt no Exception,
    so that no handler of errors mistakes it for one.
    """


class Stop:
    """Listens for the signals while it is entered; one that is not never stops anything.

    In a process that is not jvae's own, such as a notebook's, no thread ends the process.

    Several processes must stop after the same step. There JAX's preemption service listens for
    SIGTERM in place of this class and agrees on that step; SIGINT then ends a process as ever.
    """

    def __init__(self, own_process: bool = True) -> None:
        self.from_within = False  # whether `ask` came before any signal
        self._own_process = own_process
        self._asked: str | None = None
        self._at_steps = False
        self._unsaved = False  # whether a step has been made
        self._noticed = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[int, int] | None = None  # its write end, and what was there before

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
            os.close(write)  # which ends the thread
            self._wakeup = None

    @contextmanager
    def at_steps(self) -> Generator[None, None, None]:
        """Within its body signals wait for `asked`, or for its end."""
        self._at_steps = True
        try:
            yield
        finally:
            self._at_steps = False
        if self._asked:
            raise self._stopped()

    def ask(self, who: str) -> None:
        """Asks, as a signal would, to save and stop; with several processes, in all of them."""
        if self._asked is None:
            self._asked, self.from_within = who, True

    def asked(self, step: int) -> str | None:
        """The signal after which to stop once this step is saved, on all processes the same.

        To be called after every step, by every process.
        """
        self._unsaved = True
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM.name
        return self._asked

    def _watch(self, read: int) -> None:
        """Answers the first signal at once, and ends the process when the main thread cannot handle
        one and has nothing to save.
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
            print(f"{name}: stopped; the same command goes on", file=sys.stderr, flush=True)
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
        return Stopped(f"{self._asked}: stopped; the same command goes on")
