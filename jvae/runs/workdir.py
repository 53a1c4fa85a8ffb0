"""The files of a run's directory, and whose run it is.

config.json            the config as given, from the first checkpoint on
tokenizers/            both tokenizers
ckpt/                  checkpoints, and once for all of them what no phase trains
metrics.jsonl          one JSON object per log line; tensorboard/ holds the same
eval/<split>.json      metrics and reporting card
priors/                fitted priors, see `jvae.runs.priors`
latents/               latents of a split that priors were fitted to; may be deleted
samples/*.txt          text
lock                   host and process that train here; empty when none does
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
# What may change between two calls on one run; every other key is fixed by its first checkpoint.
# It acts after training, on the console or on the speed only. The mesh decides where numbers live,
# and the last digits of their sums.
FREE = (
    *("evals.", "decode.", "mesh.", "train.keep", "train.tensorboard", "train.wandb"),
    *("data.cache", "data.workers", "data.tfds_dir"),
)
# Where and in which format the text lies: the text itself is compared, see `jvae.runs.identity`.
# Runs without a record of their text keep these too.
TEXT = tuple(
    f"data.{key}"
    for key in (
        *("train", "valid", "test", "format", "text", "source", "label", "keep", "sentences"),
        *("on_error", "max_words", "max_chars"),
    )
)
# The length of the training, to no less than what is done: see `phases.replan`.
LENGTH = ("train.steps",)
# 0 stands for what the data say; checkpoints keep that.
SETTLED = (
    *("data.enc_row", "data.dec_row", "data.cond_row", "data.slots"),
    *("model.encoder.vocab", "model.decoder.vocab"),
)
LOCK = "lock"
# What file systems without `flock` answer.
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing; see `jvae.runs.output`.

    Raises: CheckpointError where it cannot.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    try:
        output.write(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot write to {path.parent}: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file of a run. Raises: CheckpointError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def one_line(text: str) -> str:
    """A decoded sentence as one line: an untrained model may well emit line ends."""
    return " ".join(re.split(r"[\r\n]", text))


def checkpoints(workdir: Path) -> list[str]:
    """The checkpoints of a directory by name, unread. Until training has saved one, a directory
    belongs to no run.
    """
    folders = [workdir / "ckpt" / kind for kind in ("last", "best")]
    steps = (step for one in folders if one.is_dir() for step in one.iterdir())
    return sorted(f"{one.parent.name}/{one.name}" for one in steps if one.name.isdigit())


def check(
    workdir: Path, config: ConfigDict, stored: Iterable[ConfigDict] = (), recorded: bool = False
) -> None:
    """Raises: CheckpointError if the directory holds checkpoints of another config.

    Args:
      stored: the configs of the checkpoints themselves.
      recorded: whether these have a record of their text, so that its place may change.
    """
    if not checkpoints(workdir):
        return
    claims = [saved_config(workdir)] if (workdir / CONFIG).is_file() else []
    may_change = (*FREE, *LENGTH, *(TEXT if recorded else ()))
    changed = {}
    for one in [*claims, *stored]:
        for key, (old, new) in configs.diff(completed(one), completed(config)).items():
            if not (key.startswith(may_change) or (key in SETTLED and not new)):
                changed[key] = f"{key}: {old!r} -> {new!r}"
    if changed:
        moved = "" if recorded else ", and it has no record of its text, which must stay in place"
        raise CheckpointError(
            f"{workdir} holds a run of another config ({'; '.join(changed.values())}). Leave these "
            f"values as they were to go on with it, or give this run its own --workdir. "
            f"A run may change {', '.join(LENGTH)}, {', '.join(one.strip('.') for one in FREE)} "
            f"and the place of its text{moved}"
        )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the directory this run's, once it is known that it may be.

    Raises: CheckpointError if it cannot be written.
    """
    write_text(workdir / CONFIG, configs.to_json(config))


def moved(workdir: Path, config: ConfigDict) -> dict[str, object]:
    """Where the text lies by a config, as far as the run's own says otherwise."""
    own = saved_config(workdir) if (workdir / CONFIG).is_file() else config
    changed = configs.diff(own, config)
    return {key: new for key, (_, new) in changed.items() if key in TEXT}


def move(workdir: Path, config: ConfigDict) -> None:
    """Writes the place of text that has moved, once it has been compared, into the run's config.

    Raises: CheckpointError if it cannot be written.
    """
    if changed := moved(workdir, config):
        own = saved_config(workdir).unlock()
        for key, new in changed.items():
            own.data[key.removeprefix("data.")] = new
        claim(workdir, own)


def saved_config(workdir: Path) -> ConfigDict:
    """The config of the run in a directory.

    Raises: CheckpointError if there is none, or it cannot be read.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{workdir}: no {CONFIG}, so no run of jvae; give the folder of a run"
        )
    return _read_config(path)


def _read_config(path: Path) -> ConfigDict:
    try:
        return configs.stored(read_text(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


class Lock:
    """Keeps other runs out of a working directory, from `take` until the process ends or it exits.

    The kernel holds the lock (`flock`) and releases it with the process, however that ends. Where
    the file system has none, a file stands for it: one whose process is gone is recognised on the
    same host; a file of another host has to be removed by hand.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK
        self._file: IO[str] | None = None
        self._flock = True

    def take(self) -> None:
        """Creates the directory if needed and locks it.

        Raises: CheckpointError if another run has it, or it cannot be written.
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
        with contextlib.suppress(OSError):  # a full disk is told by what needs the room
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
    """Locks; False where the file system cannot. Raises: BlockingIOError if another has it."""
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
    """Whether the process that a lock file names may still run."""
    words = holder.split()
    if len(words) != 2 or not words[1].isdigit():
        return False  # empty: released; else cut short by a kill
    if words[0] != socket.gethostname():
        return True  # cannot be known from here
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(words[1]) != os.getpid()
