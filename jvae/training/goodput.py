"""Where the time of a run went, in one line at its end."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

STARTING, TRAINING, COMPILING = "starting", "training", "compiling"
EVALUATING, SAVING, WAITING = "evaluating", "saving", "waiting for data"


class Goodput:
    """Splits the seconds since it was made over what the host did in them.

    The device runs behind the host, so what the host waits for data may be time in which the device
    still computes: that share is an upper bound of what is lost.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._now, self._since = STARTING, clock()
        self.seconds: dict[str, float] = {}

    def enter(self, what: str) -> None:
        """From now on time counts as `what`."""
        now = self._clock()
        self.seconds[self._now] = self.seconds.get(self._now, 0.0) + now - self._since
        self._now, self._since = what, now

    @contextmanager
    def of(self, what: str) -> Generator[None, None, None]:
        """Counts the time of its body as `what`, and what follows as before."""
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
        parts = sorted(self.seconds.items(), key=lambda one: (one[0] != TRAINING, -one[1]))
        shown = ", ".join(f"{what} {s:.1f} s ({100 * s / total:.0f} %)" for what, s in parts)
        return f"goodput of {total:.1f} s: {shown}"
