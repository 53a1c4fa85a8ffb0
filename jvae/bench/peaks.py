"""Peak performance of a device: from a table for accelerators, measured for CPUs."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvae.cli.aot import CHIPS


class Peak(NamedTuple):
    """FLOP/s of matrix products and bytes/s of memory; None if neither known nor measured."""

    flops: float | None
    memory_bytes_s: float | None
    source: str


# By JAX's name of the device; longest match first. Dense bfloat16 with float32 accumulation, SXM if
# there are several variants. Source: NVIDIA's data sheets.
GPUS = {
    "B200": (2250e12, 8.0e12),
    "H200": (CHIPS["h200"].flops_s, CHIPS["h200"].memory_bytes_s),
    "H100": (CHIPS["h100"].flops_s, CHIPS["h100"].memory_bytes_s),
    "A100-SXM4-80GB": (312e12, 2.039e12),
    "A100": (312e12, 1.555e12),
    "L40S": (362e12, 0.864e12),
    "L4": (121e12, 0.300e12),
}
TPUS = {"v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p", "v5": "v5p", "v6 lite": "v6e"}
SIDE = 2048  # side of the matrices that are measured: 17 GFLOP
ROWS, COLUMNS = 16_384, 4_096  # a matrix that exceeds any cache: 268 MB
REPEATS = 5


def of_device(dtype: str) -> Peak:
    """Peaks of the first device; for a CPU measured once per process, always in float32."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _measured(SIDE, ROWS, COLUMNS)
    return of_kind(device.device_kind, dtype)


def of_kind(kind: str, dtype: str) -> Peak:
    """Peaks by name of the device. The tables only have bfloat16; bandwidth needs no dtype."""
    for name in sorted(GPUS, key=len, reverse=True):
        if name in kind:
            flops, memory = GPUS[name]
            return Peak(flops if dtype == "bfloat16" else None, memory, f"data sheet, {name}")
    for name in sorted(TPUS, key=len, reverse=True):
        if "TPU" in kind and name in kind:
            chip = CHIPS[TPUS[name]]
            flops = chip.flops_s if dtype == "bfloat16" else None
            return Peak(flops, chip.memory_bytes_s, f"data sheet, {TPUS[name]}")
    return Peak(None, None, f"no data sheet for {kind}")


@functools.cache
def _measured(side: int, rows: int, columns: int) -> Peak:
    square, wide = jnp.ones((side, side)), jnp.ones((rows, columns))
    vector = jnp.ones(columns)
    products = _best_s(jax.jit(lambda a: a @ a), square)
    # The faster of two ways to read a matrix once: one of them may not use all cores.
    reads = min(_best_s(jax.jit(lambda a: a @ vector), wide), _best_s(jax.jit(jnp.sum), wide))
    source = f"measured: float32 product of {side} x {side}, reading {wide.nbytes / 1e6:.0f} MB"
    return Peak(2.0 * side**3 / products, wide.nbytes / reads, source)


def _best_s(call: Callable[[Any], Any], argument: Any) -> float:
    jax.block_until_ready(call(argument))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(call(argument))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
