"""Metrics: sums and counts on the device, and a background thread that writes them out.

A train or evaluation step returns `{name: Ratio(sum, count)}`. Sums over steps stay on the device
until `ratios` fetches them, which is the only host sync of a logging interval. `Writer` sends the
numbers to `metrics.jsonl`, the trackers of `jvae.runs.trackers` and the console.
"""

import json
import logging
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jvae.errors import CheckpointError
from jvae.runs import trackers
from jvae.runs.console import Console, Value
from jvae.runs.trackers import Sink, Tracker

log = logging.getLogger(__name__)


class Ratio(NamedTuple):
    """A sum and its divisor; both add up over batches, steps and devices."""

    sum: Float[Array, ""]
    count: Float[Array, ""]


Sums = dict[str, Ratio]
Line = dict[str, Any]  # a line of metrics.jsonl: the step, and values by name


@jax.jit
def _add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(lambda x, y: x + y, a, b)


def add(total: Sums | None, sums: Sums) -> Sums:
    """Adds the sums of two periods, still on the device; a `total` of None is empty."""
    return sums if total is None else _add(total, sums)


def ratios(sums: Sums) -> dict[str, float]:
    """Sum / count of each entry on the host; NaN where the count is 0. Waits for the device."""
    host = jax.device_get(sums)
    return {
        name: float(ratio.sum) / float(ratio.count) if ratio.count else math.nan
        for name, ratio in host.items()
    }


def to_json(sums: Sums | None) -> dict[str, list[float]] | None:
    """Sums as JSON values with every bit kept, for a checkpoint between two log lines."""
    if sums is None:
        return None
    host = jax.device_get(sums)
    return {name: [float(ratio.sum), float(ratio.count)] for name, ratio in host.items()}


def from_json(stored: Mapping[str, list[float]] | None, where: Sharding) -> Sums | None:
    """The inverse of `to_json`, on devices."""
    if stored is None:
        return None
    sums = {name: Ratio(*np.array(pair, np.float32)) for name, pair in stored.items()}
    return jax.device_put(sums, where)


class JsonLines:
    """One JSON object per line, step first; non-finite numbers become null.

    Every line is passed to the operating system when written, so a killed process loses none;
    `flush` writes to disk. If you write and flush all lines of a step before its checkpoint, a run
    resumed from that checkpoint has exactly the lines of an uninterrupted one.
    """

    def __init__(self, path: Path, resume_step: int):
        """Drops lines after `resume_step`, and a truncated last line, in one atomic replacement."""
        if path.exists():
            _truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step} | clean) + "\n")
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


def read_lines(path: Path) -> list[Line]:
    """The objects of a metrics file, without a truncated last line. Invalid lines are skipped with
    one warning.

    Raises: CheckpointError if the file cannot be read.
    """
    parsed = _parse(path)
    foreign = [number for number, (_, entry) in enumerate(parsed, 1) if entry is None]
    if foreign:
        log.warning(
            "%s: skipped %d lines that are not metrics, first at line %d",
            path,
            len(foreign),
            foreign[0],
        )
    return [entry for _, entry in parsed if entry is not None]


def _parse(path: Path) -> list[tuple[str, Line | None]]:
    """Every complete line with its object; None for a line that is not valid metrics."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return [(line.decode("utf-8", "replace") + "\n", _entry(line)) for line in lines]


def _entry(line: bytes) -> Line | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry["step"] < 0:
        return None
    simple = all(isinstance(value, float | int | str | None) for value in entry.values())
    return entry if simple else None


def _truncate(path: Path, resume_step: int) -> None:
    kept = []
    for number, (line, entry) in enumerate(_parse(path), 1):
        if entry is None:
            raise CheckpointError(
                f"{path}:{number}: not a line of metrics; repair or remove the file"
            )
        if entry["step"] <= resume_step:
            kept.append(line)
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _open(
    workdir: Path, resume_step: int, config: ConfigDict | None
) -> tuple[JsonLines, list[Tracker]]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lines = JsonLines(workdir / "metrics.jsonl", resume_step)
        return lines, trackers.opened(workdir, resume_step, config)
    except OSError as error:
        raise CheckpointError(f"cannot write metrics under {workdir}: {error}") from error


class Writer:
    """Writes metrics on one background thread, in the given order, so that training never waits."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int = 0,
        total_steps: int | None = None,
        stream: TextIO | None = None,
        active: bool = True,
        config: ConfigDict | None = None,
    ):
        """Opens the files under `workdir`; lines of an earlier run after `resume_step` are dropped.

        Args:
          total_steps: for the progress line.
          stream: where the console writes, standard output by default.
          active: False on all processes but one; an inactive writer does nothing.
          config: the run's config, which names its trackers; without one, only TensorBoard.
        Raises: CheckpointError if the directory cannot be written.
        """
        self._console = Console(stream or sys.stdout, total_steps)
        self._live = active and self._console.live
        self._sinks: list[Sink] = []
        self._trackers: list[Tracker] = []
        if active:
            lines, self._trackers = _open(Path(workdir), resume_step, config)
            self._sinks = [lines, *self._trackers, self._console]
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Writes one line for a step: Python numbers, text or None, by name.

        Raises: CheckpointError if an earlier line could not be written.
        """
        self._check()
        values = dict(values)
        self._queue.put(lambda: self._each(lambda sink: sink.write(step, values)))

    def spread(self, step: int, name: str, values: np.ndarray) -> None:
        """Sends a histogram to the trackers."""
        for tracker in self._trackers:
            self._queue.put(partial(tracker.spread, step, name, values))

    def progress(self, step: int) -> None:
        """Updates the progress line; does nothing if the console is not a terminal."""
        if self._live:
            self._queue.put(lambda: self._console.progress(step))

    def flush(self) -> None:
        """Blocks until everything written so far is on disk.

        Raises: CheckpointError if it could not be written.
        """
        if self._thread.is_alive():
            done = threading.Event()
            self._queue.put(lambda: self._each(lambda sink: sink.flush()))
            self._queue.put(done.set)
            done.wait()
        self._check()

    def close(self) -> None:
        """Flushes, stops the thread and closes the files."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join()
        self._try(lambda: self._each(lambda sink: sink.close()))
        self._check()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._try(job)

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            act(sink)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # raised at the loop's next call: a thread cannot raise there
            self._error = self._error or error

    def _check(self) -> None:
        if self._error is not None:
            raise CheckpointError(f"cannot write metrics: {self._error}") from self._error
