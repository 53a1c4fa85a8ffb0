"""Runs that stop early, and what is compared when they have gone on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from jvae.runs import metrics
from jvae.runs.checkpoint import Checkpoints


def at_step(monkeypatch, last_step: int, act: Callable[[], object]) -> None:
    """A run that does something of its own when it has dispatched a step."""
    plain = metrics.Writer.progress

    def progress(self, step):
        plain(self, step)
        if step == last_step:
            act()

    monkeypatch.setattr(metrics.Writer, "progress", progress)


def stop_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends the process a signal at a step, as a scheduler does."""
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))


def state(folder: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint and the place in the data."""
    with Checkpoints(folder, read_only=True) as ckpts:
        arrays, meta = ckpts.arrays()
    stored = {name: array.tobytes() for name, array in arrays.items()}
    return stored | {"position": json.dumps(meta["position"]).encode()}
