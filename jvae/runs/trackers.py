"""Trackers that receive metrics in addition to metrics.jsonl: TensorBoard and Weights & Biases."""

import logging
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.runs.console import Value

log = logging.getLogger(__name__)

ID = "wandb_id"  # file with the id under which a resumed run continues there
STEP = "step"  # value by which W&B draws all others
SHOWN = 20  # lines shown of each file of samples


class Sink(Protocol):
    """Receives the numbers of a run by step."""

    def write(self, step: int, values: Mapping[str, Value]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Tracker(Sink, Protocol):
    """Receives histograms and texts as well."""

    def spread(self, step: int, name: str, values: np.ndarray) -> None: ...

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None: ...


def _summary_writer() -> Any:
    """tensorboardX's writer, imported as if PyTorch were not installed: otherwise that is imported
    too, which takes two seconds and is not needed.

    Raises: ImportError if tensorboardX is not installed.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] makes `import` fail
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


class TensorBoard:
    """Writes event files through tensorboardX; non-finite numbers are left out."""

    def __init__(self, folder: Path, resume_step: int | None, suffix: str = ""):
        """Opens an event file.

        Args:
          resume_step: step from which training continues; None if it does not.
          suffix: end of the file name, which otherwise only depends on the second of opening.
        """
        # TensorBoard hides events of an earlier process after the step resumed from.
        self._writer = _summary_writer()(
            str(folder),
            purge_step=None if resume_step is None or not folder.exists() else resume_step + 1,
            filename_suffix=suffix,
        )

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        for name, value in _finite(values).items():
            self._writer.add_scalar(name, value, step)

    def spread(self, step: int, name: str, values: np.ndarray) -> None:
        self._writer.add_histogram(name, values.ravel(), step)

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None:
        self._writer.add_text(name, "\n\n".join(lines), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run; resumed training continues the same one."""

    def __init__(self, folder: Path, project: str, config: ConfigDict):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        path = folder / ID
        if not path.is_file():
            path.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = self._wandb.init(
            project=project,
            name=folder.name,
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=configs.flatten(config),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._log(step, _finite(values))

    def spread(self, step: int, name: str, values: np.ndarray) -> None:
        self._log(step, {name: self._wandb.Histogram(values.ravel())})

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None:
        table = self._wandb.Table(columns=["text"], data=[[line] for line in lines])
        self._log(step, {name: table})

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        # Its own counter only moves forward, and drops values of an earlier step such as those of
        # the best checkpoint. `STEP` is a value like any other that serves as the axis.
        self._run.log({STEP: step, **values})

    def flush(self) -> None:
        """Does nothing: a process of the package itself sends the data."""

    def close(self) -> None:
        self._run.finish()


def opened(
    folder: Path, resume_step: int | None, config: ConfigDict | None, suffix: str = ""
) -> list[Tracker]:
    """Opens the trackers that a config requests."""
    trackers: list[Tracker] = []
    if config is None or config.train.tensorboard:
        try:
            trackers.append(TensorBoard(folder / "tensorboard", resume_step, suffix))
        except ImportError:
            log.info("tensorboardX is not installed: no TensorBoard files")
    if config is not None and config.train.wandb:
        trackers.append(Wandb(folder, config.train.wandb, config))
    return trackers


def finish(folder: Path, step: int, config: ConfigDict, values: Mapping[str, Value]) -> None:
    """Adds evaluation results, and the texts written, to the trackers of the run."""
    for tracker in opened(folder, None, config, ".evaluation"):
        tracker.write(step, values)
        for path in sorted((folder / "samples").glob("*.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()[:SHOWN]
            tracker.texts(step, f"samples/{path.stem}", lines)
        tracker.close()


def _finite(values: Mapping[str, Value]) -> dict[str, int | float]:
    numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
