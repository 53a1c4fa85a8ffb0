"""Several processes as one program: how they join, agree and wait for each other."""

import glob
import hashlib
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jvae.errors import ConfigError


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of a run, where there are any; before any device is used.

    On a TPU VM and in a Slurm step of several tasks JAX finds them by itself; elsewhere all three
    arguments say where they are.

    Args:
      coordinator: host:port that process 0 listens on.
    Raises: ConfigError for a part of the arguments, or where the others cannot be reached.
    """
    given = (coordinator, processes, process)
    explicit = [one is not None for one in given]
    if any(explicit) != all(explicit):
        raise ConfigError("--coordinator, --processes and --process go together: give all or none")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ConfigError(f"--process={process}: expected 0 to {processes - 1}")
    if not (all(explicit) or _in_slurm() or _on_tpu_vm()):
        return
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join the other processes ({error}); is one of them missing, or "
            "--coordinator out of reach?"
        ) from error


def _in_slurm() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _on_tpu_vm() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def first() -> bool:
    """Whether this is the process that writes logs, tables and samples."""
    return jax.process_index() == 0


def wait(where: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def agree(what: str, text: str) -> None:
    """Raises ConfigError on every process unless all of them have the same text."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(digest))
    others = np.flatnonzero(np.any(every != every[0], axis=1))
    if others.size:
        raise ConfigError(
            f"{what} of process {others[0]} is not that of process 0; start all with one command "
            "and the same files"
        )
