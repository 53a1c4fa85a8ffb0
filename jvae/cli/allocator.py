"""Restarts a command with a memory allocator configuration that keeps freed memory for reuse.

On a CPU, XLA allocates the temporary buffers of a program at every call. glibc maps blocks of that
size from the kernel and unmaps them when they are freed, so that page faults take a third of a
small training step. glibc reads its settings only when a process starts. A command therefore
restarts itself once with other settings, through `os.execve`, which preserves process id,
arguments, streams, signals and exit code.

Even then, glibc maps and unmaps a block of more than 64 MiB at every call if a thread other than
the main one allocates it. The restarted process therefore makes JAX run CPU programs in the thread
that calls them, which also allocates their temporary buffers.
"""

import contextlib
import glob
import os
import sys
import threading
from pathlib import Path

VARIABLE = "JVAE_ALLOCATOR"
SYSTEM = "system"  # value of JVAE_ALLOCATOR that leaves the allocator unchanged
TUNABLES = "GLIBC_TUNABLES"
# No block gets a mapping of its own, no memory is returned, and huge pages reduce the remaining
# page faults. The heap grows by 64 MiB.
KEEP = ":".join(
    f"glibc.malloc.{name}"
    for name in ("mmap_max=0", f"trim_threshold={2**62}", f"top_pad={2**26}", "hugetlb=1")
)
_BEFORE = "JVAE_ALLOCATOR_BEFORE"  # TUNABLES of the first start, in the environment of the second
_STARTED = os.environ.get(TUNABLES, "")  # before anything changes the environment
_LIBRARIES = ("jemalloc", "tcmalloc", "mimalloc")
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def restart() -> None:
    """Restarts this process with an allocator that keeps memory, where that helps: on Linux with
    glibc, on hosts without accelerators or with JAX_PLATFORMS=cpu.

    A program must call this before anything else; a library must never call it. Does nothing in the
    restarted process, under JVAE_ALLOCATOR=system, or if the environment already selects an
    allocator or settings for one.
    """
    before = os.environ.pop(_BEFORE, None)
    if before is not None:
        # Child processes get the environment that the user set.
        os.environ.pop(TUNABLES, None)
        if before:
            os.environ[TUNABLES] = before
        import jax  # takes half a second, so only after the restart

        jax.config.update("jax_cpu_enable_async_dispatch", False)
    elif _helps() and _is_program():
        before = os.environ.get(TUNABLES, "")
        chosen = {TUNABLES: f"{before}:{KEEP}".lstrip(":"), _BEFORE: before}
        with contextlib.suppress(OSError):  # on failure, keep the current allocator
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | chosen)


def name() -> str:
    """The allocator of this process: "glibc", "glibc, keeping memory", "jemalloc", ..."""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text()
        for library in _LIBRARIES:
            if f"lib{library}" in maps:
                return library
    if KEEP in _STARTED:
        return "glibc, keeping memory"
    if "glibc.malloc." in _STARTED:
        return f"glibc, {_STARTED}"
    return "glibc" if _glibc() else "system"


def _helps() -> bool:
    chosen = f"{os.environ.get('LD_PRELOAD', '')} {os.environ.get(TUNABLES, '')}"
    return _glibc() and VARIABLE not in os.environ and "malloc" not in chosen and _on_cpu()


def _glibc() -> bool:
    try:
        return sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:  # another C library
        return False


def _on_cpu() -> bool:
    """Whether JAX will compute on the CPU; avoids importing JAX, which takes a second."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in _ACCELERATORS)


def _is_program() -> bool:
    """Whether this process was started as the jvae program and is not running anything yet."""
    arguments = sys.argv[1:]
    same = sys.orig_argv[len(sys.orig_argv) - len(arguments) :] == arguments
    return bool(sys.executable) and same and threading.active_count() == 1
