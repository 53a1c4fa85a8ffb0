"""Where metrics go beside metrics.jsonl: TensorBoard files, and Weights & Biases."""

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.runs.console import Value

log = logging.getLogger(__name__)

ID = "wandb_id"  # file that makes a resumed run the same one there
SHOWN = 20  # lines of each file of samples


class Tracker(Protocol):
    """Numbers, histograms and texts of a run by step."""

    def write(self, step: int, values: Mapping[str, Value]) -> None: ...

    def spread(self, step: int, name: str, values: np.ndarray) -> None: ...

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files through tensorboardX; numbers that are not finite are left out."""

    def __init__(self, folder: Path, resume_step: int, suffix: str = ""):
        """Args:
        suffix: of the file, whose name else is the second it was opened in.
        """
        from tensorboardX import SummaryWriter

        # TensorBoard hides what an earlier process wrote past the step resumed from.
        self._writer = SummaryWriter(
            str(folder),
            purge_step=resume_step + 1 if folder.exists() else None,
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
    """A run of Weights & Biases, the same one when the training is resumed."""

    def __init__(self, folder: Path, project: str, config: ConfigDict):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb: Any = wandb
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

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._run.log(_finite(values), step=step)

    def spread(self, step: int, name: str, values: np.ndarray) -> None:
        self._run.log({name: self._wandb.Histogram(values.ravel())}, step=step)

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None:
        table = self._wandb.Table(columns=["text"], data=[[line] for line in lines])
        self._run.log({name: table}, step=step)

    def flush(self) -> None:
        """Its own process sends what is logged."""

    def close(self) -> None:
        self._run.finish()


def opened(
    folder: Path, resume_step: int, config: ConfigDict | None, suffix: str = ""
) -> list[Tracker]:
    """The trackers that a config asks for."""
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
    """Adds the numbers of an evaluation, and the texts it wrote, to the trackers of its run."""
    for tracker in opened(folder, step, config, ".evaluation"):
        tracker.write(step, values)
        for path in sorted((folder / "samples").glob("*.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()[:SHOWN]
            tracker.texts(step, f"samples/{path.stem}", lines)
        tracker.close()


def _finite(values: Mapping[str, Value]) -> dict[str, int | float]:
    numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
