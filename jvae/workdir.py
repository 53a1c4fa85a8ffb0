"""The files of a run's directory, and whose run it is.

config.json            the config as given
tokenizers/            both tokenizers
ckpt/                  checkpoints
metrics.jsonl          one JSON object per log line; tensorboard/ holds the same
eval/<split>.json      metrics and reporting card
samples/*.txt          text
"""

import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import CheckpointError

CONFIG = "config.json"
# What may change between two calls of one run: it acts after training or on the console only.
FREE = ("evals.", "decode.", "train.keep", "train.tensorboard")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def one_line(text: str) -> str:
    """A decoded sentence as one line: an untrained model may well emit line ends."""
    return " ".join(re.split(r"[\r\n]", text))


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises: CheckpointError if the directory holds a run of another config."""
    path = workdir / CONFIG
    if path.exists():
        changed = configs.diff(configs.from_json(path.read_text(encoding="utf-8")), config)
        changed = {k: v for k, v in changed.items() if not k.startswith(FREE)}
        if changed:
            listed = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
            raise CheckpointError(
                f"{workdir} holds a run of another config ({listed}); "
                "give this one its own --workdir, or remove that folder"
            )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the directory this run's.

    Raises: CheckpointError if it holds a run of another config, or cannot be written.
    """
    check(workdir, config)
    try:
        write_text(workdir / CONFIG, configs.to_json(config))
    except OSError as error:
        raise CheckpointError(f"cannot write to {workdir}: {error}") from error


def saved_config(workdir: Path) -> ConfigDict:
    """The config of the run in a directory.

    Raises: CheckpointError if there is none.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{workdir}: no {CONFIG}, so no run of jvae; give the folder of a run"
        )
    return configs.from_json(path.read_text(encoding="utf-8"))
