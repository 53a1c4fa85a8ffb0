"""Being told to stop: SIGTERM from a scheduler, or SIGINT from the keyboard, once.

While training the answer is a checkpoint after the step that runs; anywhere else nothing is lost by
stopping at once. Either way the process ends with `CODE`, and the same command goes on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, start it again


class Stopped(BaseException):
    """Work that ended early because the process was told to; like KeyboardInterrupt no Exception,
    so that no handler of errors mistakes it for one.
    """


class Stop:
    """Listens for the signals while it is entered; one that is not never stops anything.

    Several processes must stop after the same step. There JAX's preemption service listens for
    SIGTERM in place of this class and agrees on that step; SIGINT then ends a process as ever.
    """

    def __init__(self) -> None:
        self._asked: str | None = None
        self._at_steps = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        one_process = jax.process_count() == 1
        if one_process and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def at_steps(self) -> Iterator[None]:
        """Within its body signals wait for `asked`, or for its end."""
        self._at_steps = True
        try:
            yield
        finally:
            self._at_steps = False
        if self._asked:
            raise self._stopped()

    def asked(self, step: int) -> str | None:
        """The signal after which to stop once this step is saved, on all processes the same.

        To be called after every step, by every process.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM.name
        return self._asked

    def _heard(self, number: int, _: object) -> None:
        again, self._asked = self._asked, signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._at_steps:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(f"{self._asked}: stopped; the same command goes on")
