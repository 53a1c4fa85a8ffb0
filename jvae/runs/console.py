"""What a person watching a run sees."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TextIO

Value = float | int | str | None


class Console:
    """Plain lines; on a terminal also one below them with progress, rate and time left."""

    def __init__(
        self, stream: TextIO, total_steps: int | None, clock: Callable[[], float] = time.monotonic
    ):
        self._stream, self._total, self._clock = stream, total_steps, clock
        self.live = stream.isatty()
        self._first: tuple[int, float] | None = None
        self._drawn = -math.inf
        self._bar = ""

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        of = f"/{self._total}" if self._total else ""
        groups: dict[str, list[str]] = {}
        for name, value in values.items():
            group, _, rest = name.rpartition("/")
            groups.setdefault(group, []).append(f"{rest} {_short(value)}")
        shown = "  ".join(" ".join([name, *items]).strip() for name, items in groups.items())
        self._print(f"step {step}{of}  {shown}")

    def progress(self, step: int) -> None:
        """Redraws the progress line at most ten times a second."""
        now = self._clock()
        self._first = self._first or (step, now)
        if now - self._drawn < 0.1 and step != self._total:
            return
        self._drawn = now
        first, start = self._first
        rate = (step - first) / (now - start) if now > start else 0.0
        text = f"step {step}" + (f"/{self._total}" if self._total else "")
        if self._total:
            full = 24 * min(step, self._total) // self._total
            text += f" [{'=' * full}{' ' * (24 - full)}]"
        if rate > 0:
            text += f" {rate:.1f} steps/s"
            if self._total:
                text += f", {_clock_time((self._total - step) / rate)} left"
        self._draw(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._bar:
            self._stream.write("\n")
            self._bar = ""
        self.flush()

    def _print(self, line: str) -> None:
        bar, self._bar = self._bar, ""
        self._stream.write(f"\r{line.ljust(len(bar))}\n" if bar else line + "\n")
        if bar:
            self._draw(bar)
        self.flush()

    def _draw(self, bar: str) -> None:
        self._stream.write("\r" + bar.ljust(len(self._bar)))
        self._bar = bar
        self.flush()


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
