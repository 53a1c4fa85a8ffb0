"""Progress of a long preparation: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_LINE_S = 15.0  # seconds between lines without a terminal


class Progress:
    """Counts up to a total; prints nothing for work that ends within `quiet_s` seconds."""

    def __init__(
        self,
        label: str,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet_s: float = 1.0,
    ) -> None:
        self._label, self._total = label, max(total, 1)
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._live = clock, self._stream.isatty()
        self._start = clock()
        self._next = self._start + quiet_s
        self._done = self._skipped = 0
        self._shown = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            if kind is None:
                self._show(f"{self._label}: done in {self._clock() - self._start:.0f} s")
            if self._live:
                self._stream.write("\n")
            self._stream.flush()

    def skip(self, n: int) -> None:
        """Adds work done by an earlier attempt, which is ignored in the speed."""
        self._done += n
        self._skipped += n

    def add(self, n: int) -> None:
        """Adds finished work."""
        self._done += n
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (0.1 if self._live else _LINE_S)
        share = min(self._done / self._total, 1.0)
        rate = (self._done - self._skipped) / max(now - self._start, 1e-9)
        left = max(self._total - self._done, 0) / rate if rate else 0.0
        bar = f" [{'=' * int(24 * share):24}]" if self._live else ""
        self._show(f"{self._label}:{bar} {share:.0%}, {left:.0f} s left")

    def _show(self, text: str) -> None:
        if self._live:
            self._stream.write("\r" + text.ljust(len(self._shown)))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._shown = text
