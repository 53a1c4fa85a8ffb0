"""Breaks down the wall time of a run, in one line at its end."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

STARTING, TRAINING, COMPILING = "starting", "training", "compiling"
EVALUATING, SAVING, WAITING = "evaluating", "saving", "waiting for data"


class Goodput:
    """Attributes the seconds since its creation to what the host was doing.

    The device runs asynchronously, so it may still be computing while the host waits for data: the
    share of waiting is an upper bound of the time lost.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._now, self._since = STARTING, clock()
        self.seconds: dict[str, float] = {}

    def enter(self, what: str) -> None:
        """Counts time as `what` from now on."""
        now = self._clock()
        self.seconds[self._now] = self.seconds.get(self._now, 0.0) + now - self._since
        self._now, self._since = what, now

    @contextmanager
    def of(self, what: str) -> Generator[None, None, None]:
        """Counts the time of its body as `what`; afterwards the previous activity continues."""
        before = self._now
        self.enter(what)
        try:
            yield
        finally:
            self.enter(before)

    def line(self) -> str:
        """Seconds and shares so far, training first, then by size."""
        self.enter(self._now)
        total = max(sum(self.seconds.values()), 1e-9)
        parts = sorted(self.seconds.items(), key=lambda part: (part[0] != TRAINING, -part[1]))
        text = ", ".join(f"{what} {s:.1f} s ({100 * s / total:.0f} %)" for what, s in parts)
        return f"goodput of {total:.1f} s: {text}"
