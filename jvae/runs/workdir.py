"""The files in a run's directory, and the checks that protect it from other runs.

config.json            the config as given, written with the first checkpoint
tokenizers/            both tokenizers
ckpt/                  checkpoints; parameters that no phase trains are stored once for all
metrics.jsonl          one JSON object per log line; tensorboard/ holds the same
eval/<split>.json      metrics and reporting card
priors/                fitted priors, see `jvae.runs.priors`
latents/               latents of a split that priors were fitted to; may be deleted
samples/*.txt          text
lock                   host and process that is training here; empty otherwise
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import CheckpointError, ConfigError
from jvae.runs import output
from jvae.runs.completed import completed

CONFIG = "config.json"
# Keys that may change between two commands on one run; the first checkpoint fixes all others. They
# only affect what happens after training, the console or the speed. The mesh determines where
# numbers are stored and the last digits of their sums.
FREE = (
    *("evals.", "decode.", "mesh.", "train.keep", "train.tensorboard", "train.wandb"),
    *("data.cache", "data.workers", "data.tfds_dir"),
)
# Location and format of the text: the text itself is compared, see `jvae.runs.identity`. If a run
# has no record of its text, these are fixed as well.
TEXT = tuple(
    f"data.{key}"
    for key in (
        *("train", "valid", "test", "format", "text", "source", "label", "keep", "sentences"),
        *("on_error", "max_words", "max_chars"),
    )
)
# The length of training, which must not be less than what is done: see `phases.replan`.
LENGTH = ("train.steps",)
# Keys where 0 means a value derived from the data; checkpoints store that value.
SETTLED = (
    *("data.enc_row", "data.dec_row", "data.cond_row", "data.slots"),
    *("model.encoder.vocab", "model.decoder.vocab"),
)
LOCK = "lock"
# Errors of file systems without `flock`.
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing; see `jvae.runs.output`.

    Raises: CheckpointError if it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Like `write_text`, for bytes."""
    try:
        output.write(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot write to {path.parent}: {error}") from error


def read_text(path: Path) -> str:
    """Reads a text file of a run. Raises: CheckpointError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def one_line(text: str) -> str:
    """A decoded sentence as one line: an untrained model may emit line breaks."""
    return " ".join(re.split(r"[\r\n]", text))


def checkpoints(workdir: Path) -> list[str]:
    """The checkpoints in a directory by name, unread. Until training has saved one, a directory
    does not belong to a run.
    """
    folders = [workdir / "ckpt" / kind for kind in ("last", "best")]
    steps = (step for folder in folders if folder.is_dir() for step in folder.iterdir())
    return sorted(f"{step.parent.name}/{step.name}" for step in steps if step.name.isdigit())


def check(
    workdir: Path, config: ConfigDict, stored: Iterable[ConfigDict] = (), recorded: bool = False
) -> None:
    """Raises: CheckpointError if the directory holds checkpoints of another config.

    Args:
      stored: the configs of the checkpoints themselves.
      recorded: whether they have a record of their text, so that its location may change.
    """
    if not checkpoints(workdir):
        return
    claims = [saved_config(workdir)] if (workdir / CONFIG).is_file() else []
    may_change = (*FREE, *LENGTH, *(TEXT if recorded else ()))
    changed = {}
    for stored_config in [*claims, *stored]:
        for key, (old, new) in configs.diff(completed(stored_config), completed(config)).items():
            if not (key.startswith(may_change) or (key in SETTLED and not new)):
                changed[key] = f"{key}: {old!r} -> {new!r}"
    if changed:
        moved = "" if recorded else ", and it has no record of its text, which must not move"
        raise CheckpointError(
            f"{workdir} holds a run of another config ({'; '.join(changed.values())}). Keep these "
            f"values to resume it, or give this run its own --workdir. "
            f"A run may change {', '.join(LENGTH)}, {', '.join(key.strip('.') for key in FREE)} "
            f"and the location of its text{moved}"
        )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Assigns the directory to this run, once it is known that this is allowed.

    Raises: CheckpointError if it cannot be written.
    """
    write_text(workdir / CONFIG, configs.to_json(config))


def moved(workdir: Path, config: ConfigDict) -> dict[str, object]:
    """The text locations in a config that differ from those in the run's own config."""
    saved = saved_config(workdir) if (workdir / CONFIG).is_file() else config
    changed = configs.diff(saved, config)
    return {key: new for key, (_, new) in changed.items() if key in TEXT}


def move(workdir: Path, config: ConfigDict) -> None:
    """Updates the run's config with the location of text that has moved, after comparing it.

    Raises: CheckpointError if it cannot be written.
    """
    if changed := moved(workdir, config):
        saved = saved_config(workdir).unlock()
        for key, new in changed.items():
            saved.data[key.removeprefix("data.")] = new
        claim(workdir, saved)


def saved_config(workdir: Path) -> ConfigDict:
    """The config of the run in a directory.

    Raises: CheckpointError if there is none, or it cannot be read.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{workdir}: no {CONFIG}, so it is not a run of jvae; give the folder of a run"
        )
    return _read_config(path)


def _read_config(path: Path) -> ConfigDict:
    try:
        return configs.stored(read_text(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


class Lock:
    """Keeps other runs out of a working directory, from `take` until the context or process exits.

    The kernel holds the lock (`flock`) and releases it when the process ends, for any reason. On
    file systems without `flock` a lock file is used instead: if its process has ended, this is
    detected on the same host; a file from another host has to be removed by hand.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK
        self._file: IO[str] | None = None
        self._flock = True

    def take(self) -> None:
        """Locks the directory, creating it if needed.

        Raises: CheckpointError if another run holds it, or it cannot be written.
        """
        if self._file is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write to {self._path.parent}: {error}") from error
        try:
            self._flock = _flock(file)
        except BlockingIOError:
            raise self._busy(file) from None
        if not self._flock and _alive(_read(file)):
            raise self._busy(file)
        self._file = file
        with contextlib.suppress(OSError):  # a full disk is reported elsewhere
            file.truncate(0)
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
            file.flush()

    def _busy(self, file: IO[str]) -> CheckpointError:
        with file:
            words = _read(file).split()
        host, pid = words if len(words) == 2 else ("?", "?")
        hint = "" if self._flock else f"; if it is not, remove {self._path}"
        return CheckpointError(
            f"{self._path.parent}: another run trains here (process {pid} on {host}{hint}); stop "
            "it first, or give this one its own --workdir"
        )

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError), self._file:
                self._file.truncate(0)
            self._file = None


def _flock(file: IO[str]) -> bool:
    """Locks; False if the file system cannot. Raises: BlockingIOError if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _alive(holder: str) -> bool:
    """Whether the process named in a lock file may still be running."""
    words = holder.split()
    if len(words) != 2 or not words[1].isdigit():
        return False  # empty: released; otherwise truncated by a kill
    if words[0] != socket.gethostname():
        return True  # cannot be determined from here
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(words[1]) != os.getpid()
