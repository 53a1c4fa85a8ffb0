"""Counts the collectives of a compiled program from its HLO text."""

import math
import re
from collections import Counter
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = dict(pred=1, s8=1, u8=1, bf16=2, f16=2, s16=2, u16=2, f32=4, s32=4, u32=4, f64=8, s64=8)

HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")


class Traffic(NamedTuple):
    """Collectives of one kind: their number, bytes of their results, bytes sent per device."""

    count: int
    result_bytes: int
    sent_bytes: float


def collectives(hlo: str, devices: int, turns: int = 1) -> dict[str, Traffic]:
    """Collectives of a compiled program by kind, per device.

    In a ring of n devices, each device sends 2 (n - 1) / n of the bytes of an all-reduce, and
    (n - 1) / n of the larger side of any other collective.

    Args:
      hlo: text of the compiled program.
      devices: number of devices that run the program.
      turns: iterations assumed for loops whose trip count is not in the text.
    """
    ops: dict[str, Counter[tuple[str, int, float]]] = {}
    calls: dict[str, Counter[str]] = {}
    fused: set[str] = set()
    ends = loop_ends(hlo)
    entry = computation = ""
    for line in hlo.splitlines():
        if header := HEADER.match(line):
            computation = header[2]
            entry = computation if header[1] else entry
            ops[computation], calls[computation] = Counter(), Counter()
        match = re.search(r"= (.*?) ([a-z\-]+)\(", line)
        if not match or not computation:
            continue
        kind = match[2].removesuffix("-start")
        if kind in COLLECTIVES and not _again(line, computation, fused):
            size, group = _size(match[1], kind != match[2]), _group(line, devices)
            if "all-reduce-scatter" in computation:  # the TPU compiler's form of a reduce-scatter
                kind, size = "reduce-scatter", size // group
            ops[computation][kind, size, _sent(kind, size, group)] += 1
        looped = 1
        if kind == "while":
            trip_count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            condition = re.search(r"condition=%?([\w.\-]+)", line)
            end = ends.get(condition[1], turns) if condition else turns
            looped = int(trip_count[1]) if trip_count else end
        for called in re.findall(
            r"(?:body|condition|calls|to_apply|computation)=%?([\w.\-]+)", line
        ):
            calls[computation][called] += looped
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[computation].update(re.findall(r"[\w.\-]+", branches))
    total: dict[str, Traffic] = {}

    def add(name: str, times: int) -> None:
        for (kind, size, sent), count in ops.get(name, Counter()).items():
            many, most, all_sent = total.get(kind, Traffic(0, 0, 0.0))
            count *= times
            total[kind] = Traffic(many + count, most + count * size, all_sent + count * sent)
        for called, count in calls.get(name, Counter()).items():
            add(called, times * count)

    add(entry, 1)
    return total


def loop_ends(hlo: str) -> dict[str, int]:
    """The integer constant in the comparison of each computation that is a plain comparison.

    In the condition of a loop that counts from 0, as all JAX scans do, it is the number of
    iterations; for other loops it is an upper bound. A condition with a second term, which may end
    the loop earlier, is left out.
    """
    constants: dict[str, int] = {}
    compound: set[str] = set()
    fused: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        if header := HEADER.match(line):
            computation = header[2]
        elif constant := re.search(r"= s32\[\](?:\{\S*\})? constant\((\d+)\)", line):
            constants[computation] = max(constants.get(computation, 0), int(constant[1]))
        elif re.search(r"= pred\[\](?:\{\S*\})? and\(", line):
            compound.add(computation)
        elif calls := re.search(r"= pred\[\](?:\{\S*\})? fusion\(.*calls=%?([\w.\-]+)", line):
            fused[computation] = calls[1]
    return {
        name: end
        for name, end in constants.items()
        if name not in compound and fused.get(name) not in compound
    }


def _again(line: str, computation: str, fused: set[str]) -> bool:
    """Whether a line is a later part of a collective that the TPU compiler split over fusions."""
    channel = re.search(r"channel_id=(\d+)", line)
    if channel is None or not computation.startswith(
        ("fused_computation", "async_collective_fusion")
    ):
        return False
    repeated = channel[1] in fused
    fused.add(channel[1])
    return repeated


def _sent(kind: str, result: int, group: int) -> float:
    if kind == "collective-permute":
        return result
    if kind == "reduce-scatter":
        return result * (group - 1)
    return result * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group(line: str, devices: int) -> int:
    """Number of devices that take part in one collective."""
    if match := re.search(r"replica_groups=\[(\d+(?:,\d+)*)\]<=", line):
        return int(match[1].rpartition(",")[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _size(shapes: str, begun: bool) -> int:
    """Bytes of a result; a start op also returns its operand, so its largest part is used."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in parts
    ]
    return max(sizes, default=0) if begun else sum(sizes)
