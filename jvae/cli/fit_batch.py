"""`--mode=fit-batch`: the largest data.batch_rows whose training step fits in device memory.

The compiler reports the memory of a step; nothing is run.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae.cli import aot
from jvae.errors import ConfigError
from jvae.parallel import mesh as meshes
from jvae.runs import build
from jvae.validation.validate import validate

SHARE = 0.9  # of memory; the rest is for batches in transfer and allocations the compiler omits
EXACT = 16  # the answer is within 1/16 of the maximum


def fit(config: ConfigDict, folder: Path, topology: str | None) -> Iterator[str]:
    """Yields lines about what was compiled; the last one has the answer.

    Args:
      topology: a slice as for --mode=compile; None for the devices of this process.
    Raises: ConfigError for an unknown slice, or a model that does not fit at all.
    """
    part = None if topology is None else aot.Slice.of(topology)
    if part and part.kind not in aot.CHIPS:
        raise ConfigError(f"--topology={topology}: its memory is not known; leave the flag out")
    if part:
        aot.prepare([part])
    validate(config, platform=part and ("cpu" if part.virtual else part.plugin.platform))
    mesh = meshes.make_mesh(config.mesh, None if part is None else aot.devices(part))
    limit = SHARE * (_memory() if part is None else aot.CHIPS[part.kind].memory_bytes)
    run = build.open_run(config, folder)
    multiple = meshes.row_shards(mesh) * config.train.accumulate
    lines: list[str] = []

    def peak(rows: int) -> int | None:
        """Peak bytes of a device; None if the compiler runs out of memory."""
        needs = _peak(run, mesh, rows)
        amount = "more memory than there is, out" if needs is None else f"{needs / 2**30:.2f} GiB"
        lines.append(f"data.batch_rows={rows}: {amount} of {limit / 2**30:.2f} GiB")
        return needs

    # One update should not read a text twice; no row has more texts than slots.
    texts = len(run.data["train"])
    most = max(texts // run.rows.slots // multiple, 1) * multiple
    search = largest(peak, limit, config.data.batch_rows, multiple)
    rows = 0
    for best in search:
        rows = best
        yield lines.pop()
    if not rows:
        raise ConfigError(
            f"not even data.batch_rows={multiple} fits into {limit / 2**30:.2f} GiB; use a smaller "
            "preset, data.row_tokens, model.*.remat=full, or mesh.fsdp on several devices"
        )
    if rows > most:
        yield f"data.batch_rows={rows} fits, but {most} already read all {texts:,} training texts"
        rows = most
    yield (
        f"the largest that fits: --config.data.batch_rows={rows} (the config has "
        f"{config.data.batch_rows}). An epoch then takes "
        f"{config.data.batch_rows / rows:.2g} times as many steps, and optim.lr usually grows with "
        "the square root of the rows"
    )


def largest(
    peak: Callable[[int], int | None], limit: float, start: int, multiple: int
) -> Iterator[int]:
    """Searches for the largest multiple whose peak is within a limit. Yields, after every attempt,
    the largest size known to fit so far; 0 for none.

    The memory of a step grows linearly with its rows, so two sizes predict the next candidate; if
    that fails, the size is doubled or halved.
    """
    low, high = 0, None  # low fits, high does not
    peak_of: dict[int, int] = {}
    rows = max(start // multiple, 1)
    while True:
        needs = peak(rows * multiple)
        if needs is not None:
            peak_of[rows] = needs
        if needs is not None and needs <= limit:
            low = rows
        else:
            high = rows
        yield low * multiple
        best = _predicted(peak_of, limit)
        near = best is not None and 0 <= best - low <= low // EXACT
        if near or (high is not None and high - low <= max(1, low // EXACT)):
            return
        inside = best is not None and best > low and (high is None or best < high)
        if best is not None and inside:
            rows = best
        else:
            rows = 2 * low if high is None else (low + high) // 2


def _predicted(peak_of: dict[int, int], limit: float) -> int | None:
    """The number of rows at which a line through the two largest sizes reaches the limit."""
    if len(peak_of) < 2:
        return None
    first, second = sorted(peak_of)[-2:]
    slope = (peak_of[second] - peak_of[first]) / (second - first)
    return int(second + (limit - peak_of[second]) / slope) if slope > 0 else None


def _peak(run: build.Run, mesh: Mesh, rows: int) -> int | None:
    config = ConfigDict(run.config.to_dict())
    config.data.batch_rows = rows
    resized = run._replace(
        config=config.lock(), rows=dataclasses.replace(run.rows, batch_rows=rows)
    )
    peaks = []
    for case in aot.training_steps(resized, mesh):
        needs = aot.estimate(case, case, mesh.size)["peak_bytes"]
        if needs is None:
            return None
        peaks.append(needs)
    return max(peaks)


def _memory() -> float:
    """Bytes of memory per device; for CPUs, the machine's memory divided by the devices."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
