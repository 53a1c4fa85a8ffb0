"""Console output of a run, robust to streams that are lost while it is running."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO, cast

Value = float | int | str | None
# Replacements for characters an encoding lacks; all others become "?".
_PLAIN = str.maketrans({"±": "+-", "≥": ">=", "≤": "<=", "–": "-", "−": "-", "…": "..."})

# Only in metrics.jsonl: these describe packing, or are the same on every line of a healthy run.
_UNSHOWN = {
    f"train/{name}"
    for name in ("empty_slots", "finite", "padding", "sentences", "tokens", "time/step_ms")
}


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Shows the messages of the package on standard error, as the command line does.

    An application that has set a level, of the root logger or of `jvae`, keeps its own logging.
    """
    own, root = logging.getLogger("jvae"), logging.getLogger()
    if own.level != logging.NOTSET or root.level != logging.WARNING:
        yield
        return
    handler, passed_on = logging.StreamHandler(), own.propagate
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False  # a library may have given the root a handler, which would repeat all
    try:
        yield
    finally:
        own.removeHandler(handler)
        own.setLevel(logging.NOTSET)
        own.propagate = passed_on


class SafeStream:
    """A text stream whose failure never stops the program.

    After a failed write (the reader of a pipe has exited as under `| head`, the disk is full, the
    terminal was closed) all further output is dropped, since the work and its files matter more.
    Characters that the encoding lacks are replaced.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.lost = stream is None

    def write(self, text: str) -> int:
        try:
            if self._stream and not self.lost:
                self._stream.write(self._encodable(text))
        except (OSError, ValueError):  # ValueError: the stream object is closed
            self._lose()
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream and not self.lost:
                self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def isatty(self) -> bool:
        try:
            return bool(self._stream and not self.lost and self._stream.isatty())
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        return text

    def _lose(self) -> None:
        self.lost = True
        # Buffered text would raise another error when the interpreter exits.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if self._stream and (number := self._stream.fileno()) in (1, 2):
                with open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), number)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Makes standard output and standard error safe while its body runs."""
    # A file opened in place of a closed stream would receive what others write to that stream.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    kept = sys.stdout, sys.stderr
    safe = SafeStream(kept[0]), SafeStream(kept[1])
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], safe)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = kept


def write_result(text: str) -> None:
    """Writes a command's result to standard output; silent if the reader of the pipe has exited.

    Raises: OSError if it cannot be written; UnicodeEncodeError for characters that standard output
      cannot encode.
    """
    stream = sys.stdout
    if isinstance(stream, SafeStream):
        stream.flush()
        gone = stream.lost
        stream = None if gone else stream._stream
    if stream is None:
        raise OSError("it is closed")
    text.encode(getattr(stream, "encoding", None) or "utf-8")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # as under `| head`
        SafeStream(stream)._lose()
    except ValueError as error:
        raise OSError(str(error)) from None


class Console:
    """Log lines with the time left; on a terminal also a progress line with the rate below them."""

    def __init__(
        self,
        stream: TextIO | None,
        total_steps: int | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream, self._total, self._clock = SafeStream(stream), total_steps, clock
        self.live = self._stream.isatty()
        self._first: tuple[int, float] | None = None
        self._drawn = -math.inf
        self._bar = ""

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        of = f"/{self._total}" if self._total else ""
        if left := self._left(self._rate(step), step):
            of += f", {left} left"
        groups: dict[str, list[str]] = {}
        for name, value in values.items():
            if name in _UNSHOWN:
                continue
            group, _, rest = name.rpartition("/")
            groups.setdefault(group, []).append(f"{rest} {_short(value)}")
        text = "  ".join(" ".join([name, *items]).strip() for name, items in groups.items())
        self._print(f"step {step}{of}  {text}")

    def progress(self, step: int) -> None:
        """Redraws the progress line at most ten times a second."""
        now = self._clock()
        rate = self._rate(step)
        if now - self._drawn < 0.1 and step != self._total:
            return
        self._drawn = now
        text = f"step {step}" + (f"/{self._total}" if self._total else "")
        if self._total:
            full = 24 * min(step, self._total) // self._total
            text += f" [{'=' * full}{' ' * (24 - full)}]"
        if rate > 0:
            text += f" {rate:.1f} steps/s"
            if left := self._left(rate, step):
                text += f", {left} left"
        self._draw(text)

    def _rate(self, step: int) -> float:
        """Steps per second since the first step seen; 0 if there is only one."""
        now = self._clock()
        self._first = self._first or (step, now)
        first, start = self._first
        return (step - first) / (now - start) if now > start else 0.0

    def _left(self, rate: float, step: int) -> str:
        """Time left as text; empty if unknown, and in the last second."""
        if not self._total or rate <= 0:
            return ""
        seconds = (self._total - step) / rate
        return _clock_time(seconds) if seconds >= 1 else ""

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
