"""Multi-process runs: initialisation, barriers and consistency checks."""

import glob
import hashlib
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jvae.errors import ConfigError


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of a run, if any. Call it before any device is used.

    On a TPU VM and in a Slurm step with several tasks, JAX detects them automatically; elsewhere
    all three arguments are required.

    Args:
      coordinator: host:port that process 0 listens on.
    Raises: ConfigError if only some arguments are given, or the other processes are unreachable.
    """
    arguments = (coordinator, processes, process)
    explicit = [argument is not None for argument in arguments]
    if any(explicit) != all(explicit):
        raise ConfigError("--coordinator, --processes and --process go together: give all or none")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ConfigError(f"--process={process}: expected 0 to {processes - 1}")
    if not (all(explicit) or _in_slurm() or _on_tpu_vm()):
        return
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join the other processes ({error}); is one of them missing, or "
            "--coordinator out of reach?"
        ) from error


def _in_slurm() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _on_tpu_vm() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in platforms and bool(chips) and importlib.util.find_spec("libtpu") is not None


def first() -> bool:
    """Whether this is the process that writes logs, tables and samples."""
    return jax.process_index() == 0


def wait(where: str) -> None:
    """Barrier: returns once every process has reached it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def agree(what: str, text: str) -> None:
    """Raises ConfigError on every process unless `text` is the same on all of them."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    mismatches = np.flatnonzero(np.any(digests != digests[0], axis=1))
    if mismatches.size:
        raise ConfigError(
            f"{what} of process {mismatches[0]} differs from that of process 0; start all "
            "processes with the same command and files"
        )
