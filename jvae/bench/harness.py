"""Measures a case: warm-up, several windows, median and spread, peak memory, compile time.

The host waits for the device once per window, not once per call, so the result is throughput.
Windows of the programs of a case, including those of a peer, alternate, so that other load on the
machine affects all of them.
"""

import contextlib
import functools
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jvae.bench import peaks
from jvae.cli import allocator
from jvae.errors import ConfigError
from jvae.runs.provenance import commit

WINDOWS = 3
PACKAGES = ("jvae", "jax", "jaxlib", "flax", "optax")
PEER_PACKAGES = ("torch", "transformers")


class Work(NamedTuple):
    """One program of a case, and the work that a call of it does.

    `call` starts it and returns arrays to wait for. Useful tokens exclude padding and count once
    per pass. `fill` is the packing efficiency: the share of positions that hold a token, per side,
    and of slots that hold a sentence. `flops` are those of the useful tokens, `program_flops` all
    matrix products of the program, padding and recomputation included. `read_bytes`: bytes that
    must be read from memory. `shapes` and `extra` are copied to the record.
    """

    name: str
    call: Callable[[], Any]
    sentences: int
    tokens: int
    shapes: Mapping[str, Any]
    fill: Mapping[str, float] = {}
    flops: float | None = None
    program_flops: float | None = None
    read_bytes: float | None = None
    compiles: bool = True
    extra: Mapping[str, Any] = {}


class Preset(NamedTuple):
    """A kind of machine, the length of a measurement, and the dtype of computation."""

    platform: str
    window_s: float  # minimum length of a window
    dtype: str


PRESETS = {
    "cpu": Preset("cpu", 0.5, "float32"),
    "gpu": Preset("gpu", 2.0, "bfloat16"),
    "tpu": Preset("tpu", 2.0, "bfloat16"),
}


def check_platform(preset: str) -> Preset:
    """The preset of that name. Raises: ConfigError if it is unknown or there is no such device."""
    if preset not in PRESETS:
        raise ConfigError(f"--preset={preset}: expected one of {', '.join(PRESETS)}")
    backend = jax.default_backend()
    if backend != PRESETS[preset].platform:
        raise ConfigError(
            f"--preset={preset} needs a {preset.upper()}, but JAX runs on {backend} here; "
            "install JAX for it, or choose another preset"
        )
    return PRESETS[preset]


def windows(
    works: Sequence[Work], window_s: float, count: int = WINDOWS
) -> dict[str, dict[str, Any]]:
    """Seconds per call of each program: for the first call, with compilation, and for each window.

    A peer that does not fit into memory with the others is left out, with a note.

    Raises: ValueError if names repeat; ConfigError if a program of ours does not fit into memory.
    """
    names = [work.name for work in works]
    if len(set(names)) < len(names):
        raise ValueError(f"windows: programs {names} need distinct names")
    times: dict[str, dict[str, Any]] = {}
    for work in works:
        try:
            first = _seconds(work.call, 1)
            once = _seconds(work.call, 1)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            if "peer" not in work.extra:
                raise ConfigError(
                    f"{work.name} does not fit into the memory of the device; --config=PRESET with "
                    "fewer rows per step (data.batch_rows) may"
                ) from error
            print(f"{work.name}: does not fit into memory, not measured", file=sys.stderr)
            continue
        if once < window_s:  # the first call after compilation may still be slow
            once = min(once, _seconds(work.call, 1))
        calls = max(1, round(window_s / max(once, 1e-9)))
        times[work.name] = {"first_s": first, "once_s": once, "calls": calls}
        times[work.name] |= {"call_s": [], "host_s": []}
    measured = [work for work in works if work.name in times]
    for _ in range(count):
        for work in measured:
            row = times[work.name]
            host = time.process_time()
            row["call_s"].append(_seconds(work.call, row["calls"]))
            row["host_s"].append((time.process_time() - host) / row["calls"])
    return times


def _out_of_memory(error: Exception) -> bool:
    """Whether JAX or PyTorch reported it; the latter is not imported here."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


def _seconds(call: Callable[[], Any], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        last = call()
    jax.block_until_ready(last)
    return (time.perf_counter() - begin) / times


def records(
    case: str,
    works: Sequence[Work],
    preset: Preset,
    config: ConfigDict,
    command: str,
    count: int = WINDOWS,
) -> list[dict[str, Any]]:
    """One JSON-able record for each program of a case; see `windows`."""
    forget_peak_memory()
    timed = windows(works, preset.window_s, count)
    rows = []
    for work in (work for work in works if work.name in timed):
        times = timed[work.name]
        call_s = sorted(times["call_s"])
        middle = statistics.median(call_s)
        rows.append(
            {
                "case": case,
                "program": work.name,
                "preset": preset.platform,
                "config": config.name,
                "dtype": preset.dtype,
                "sentences_per_s": work.sentences / middle,
                "useful_tokens_per_s": work.tokens / middle,
                "call_ms": 1e3 * middle,
                "call_ms_spread": [1e3 * call_s[0], 1e3 * call_s[-1]],
                # Summed over cores: not affected by other load on the machine.
                "host_ms": 1e3 * statistics.median(times["host_s"]),
                "windows": len(call_s),
                "calls_per_window": times["calls"],
                "fill": dict(work.fill),
                **_against_peaks(work, middle, preset.dtype),
                "compile_s": times["first_s"] - times["once_s"] if work.compiles else None,
                "peak_memory_bytes": peak_memory(),
                "shapes": dict(work.shapes),
                **work.extra,
                "command": command,
                **surroundings(),
            }
        )
    for row in rows:
        if "peer" in row:
            _set_beside(row, rows)
    return rows


def _against_peaks(work: Work, seconds: float, dtype: str) -> dict[str, Any]:
    """Work per second, and its share of the device's peak."""
    row: dict[str, Any] = {}
    amounts = {"flops": work.flops, "program_flops": work.program_flops, "bytes": work.read_bytes}
    if all(amount is None for amount in amounts.values()):
        return row
    peak = peaks.of_device(dtype)
    for name, amount in amounts.items():
        if amount is None:
            continue
        most = peak.memory_bytes_s if name == "bytes" else peak.flops
        row[f"{name}_per_s"] = amount / seconds
        row[f"{name}_share"] = None if most is None else amount / seconds / most
    return row | {"peak": peak._asdict()}


def _set_beside(row: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds to a peer's record the speedup of our program, by useful tokens."""
    ours = next(record for record in rows if record["program"] == row["beside"])
    row["ratio"] = ours["useful_tokens_per_s"] / row["useful_tokens_per_s"]
    row["versions"] = row["versions"] | {name: _version(name) for name in PEER_PACKAGES}


def forget_peak_memory() -> None:
    """Resets `peak_memory`, if the system can (Linux, this process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak bytes in use: on the first device since it was opened, or, if it does not report them,
    of this process since `forget_peak_memory`.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    with contextlib.suppress(OSError):
        if match := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(match[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@functools.cache
def surroundings() -> dict[str, Any]:
    """Commit, versions, allocator and hardware."""
    return {
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "allocator": allocator.name(),
        "hardware": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
