"""Counts the kernels of a compiled program, and the memory traffic and FLOPs of each.

Every operation that remains at the top level of the optimised program is one kernel: it reads its
operands from memory and writes its result once. Loops multiply. Nothing is assumed to stay in a
cache, except what the compiler itself placed in on-chip memory.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jvae.parallel.collectives import BYTES, HEADER, loop_ends

# Operations that move nothing, as do the ends of asynchronous pairs: names for values, control
# flow.
_FREE = frozenset(
    (*("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "iota"),)
    + ("after-all", "partition-id", "replica-id", "add-dependency", "async-update")
)
_OPERATION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
# The last result of a call of cuBLAS or cuDNN.
_WORKSPACE = re.compile(r", [su]8\[\d+\](\{[^}]*\})?\)$")
_ON_CHIP = re.compile(r"S\(1\)")  # VMEM, in layouts of the TPU compiler


class Kernel(NamedTuple):
    """One operation of a compiled program, with its cost per run of the kernel.

    times: how often it runs per call of the program. reads: the type of each operand, in HLO
    syntax, and the bytes read of it. source: JAX's name of the operation.
    """

    name: str
    kind: str
    times: int
    reads: tuple[tuple[str, int], ...]
    written_bytes: int
    flops: float
    result: str
    source: str

    @property
    def read_bytes(self) -> int:
        """Bytes read of all operands."""
        return sum(size for _, size in self.reads)


class _Op(NamedTuple):
    name: str
    result: str  # type, in HLO syntax
    kind: str
    operands: list[str]
    line: str
    root: bool


def kernels(hlo: str, turns: int = 1, declared: Mapping[str, int] | None = None) -> list[Kernel]:
    """The kernels of a compiled program, per device.

    FLOPs are those of matrix products, also inside fusions and in cuBLAS and cuDNN calls; those of
    other custom calls are unknown here and 0, see `jvae.parallel.flops` for all.

    Args:
      hlo: text of the compiled program.
      turns: iterations assumed for loops whose number of iterations is not in the text.
      declared: bytes that Pallas kernels move per call, by name, where they do not read their
        operands once; see `jvae.parallel.flops.declared_bytes`.
    """
    computations, entry = _parse(hlo)
    ends = loop_ends(hlo)

    def walk(name: str, times: int) -> Iterator[Kernel]:
        types = {op.name: op.result for op in computations[name]}
        for op in computations[name]:
            if op.kind == "while":
                trip_count = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.line)
                condition, body = (_called(op, role) for role in ("condition", "body"))
                count = int(trip_count[1]) if trip_count else ends.get(condition, turns)
                yield from walk(body, times * count)
            elif op.kind == "conditional":  # the first branch stands for all
                branches = re.search(
                    r"(?:branch_computations=\{|true_computation=)%?([\w.\-]+)", op.line
                )
                if branches:
                    yield from walk(branches[1], times)
            elif op.kind == "call":
                yield from walk(_called(op, "to_apply"), times)
            elif op.kind not in _FREE and not op.kind.endswith("-done"):
                yield _declared(_kernel(op, types, computations, times), declared or {})

    return list(walk(entry, 1))


def _parse(hlo: str) -> tuple[dict[str, list[_Op]], str]:
    """The operations of each computation, and the name of the entry."""
    computations: dict[str, list[_Op]] = {}
    entry = computation = ""
    for line in hlo.splitlines():
        if not line.startswith(" ") and (header := HEADER.match(line)):
            computation = header[2]
            entry = computation if header[1] else entry
            computations[computation] = []
        elif computation and (op := _OPERATION.match(line)):
            names = _operands(op[5])
            computations[computation].append(_Op(op[2], op[3], op[4], names, line, bool(op[1])))
    return computations, entry


def _operands(rest: str) -> list[str]:
    """Names of the operands, from the text after an operation's opening parenthesis."""
    depth = 1
    for end, character in enumerate(rest):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            rest = rest[:end]
            break
    return re.findall(r"%([\w.\-]+)", rest)


def _called(op: _Op, role: str) -> str:
    match = re.search(rf"{role}=%?([\w.\-]+)", op.line)
    return match[1] if match else ""


def _bytes(types: str) -> int:
    """Bytes in memory of all arrays of a type."""
    return sum(
        BYTES.get(kind, 4) * math.prod(_sizes(dims))
        for kind, dims, layout in _ARRAY.findall(types)
        if not _ON_CHIP.search(layout)
    )


def _sizes(dims: str) -> list[int]:
    return [int(size) for size in dims.split(",") if size]


def _shape(types: str) -> list[int]:
    """Sizes of the first array of a type."""
    first = _ARRAY.search(types)
    return _sizes(first[2]) if first else []


def _kernel(
    op: _Op, types: dict[str, str], computations: dict[str, list[_Op]], times: int
) -> Kernel:
    body = computations.get(_called(op, "calls"), [])
    operands = [types.get(name, "") for name in op.operands]
    target = re.search(r'custom_call_target="([^"]+)"', op.line)
    kind = target[1] if target else op.kind
    if op.kind == "fusion":
        fused = re.search(r'"kind":"(\w+)"', op.line) or re.search(r"kind=k(\w+)", op.line)
        kind = f"fusion:{fused[1]}" if fused else "fusion"
    sizes = [_bytes(operand) for operand in operands]
    written = _bytes(_WORKSPACE.sub(")", op.result) if kind.startswith("__cu") else op.result)
    if body:
        sizes = [_read(body, i, operand) for i, operand in enumerate(operands)]
        written = sum(_written(body, root) for root in _roots(body))
    elif op.kind in ("dynamic-slice", "slice", "gather"):
        sizes = [written, *[0] * (len(operands) - 1)]
    elif op.kind == "dynamic-update-slice":
        written = sizes[1]
        sizes = [0, written, *[0] * (len(operands) - 2)]
    elif op.kind.endswith("-start"):  # the result repeats the operand and adds counters
        parts = [_bytes(part[0]) for part in re.finditer(_ARRAY, op.result)]
        written = parts[1 if op.kind == "all-gather-start" and len(parts) > 1 else 0]
    flops = sum(_flops(inner, {x.name: x.result for x in body}) for inner in body) or _flops(
        op, types
    )
    source = re.search(r'op_name="([^"]*)"', op.line)
    return Kernel(
        *(op.name, kind, times, tuple(zip(operands, sizes, strict=True)), written, flops),
        *(op.result, source[1] if source else ""),
    )


def _declared(kernel: Kernel, declared: Mapping[str, int]) -> Kernel:
    """The kernel with the bytes that it declares, if it is a Pallas kernel that does."""
    name = re.search(r"/([^/]+)/pallas_call", kernel.source)
    if name is None or name[1] not in declared:
        return kernel
    share = declared[name[1]] / (kernel.read_bytes + kernel.written_bytes)
    reads = tuple((operand, round(share * size)) for operand, size in kernel.reads)
    return kernel._replace(reads=reads, written_bytes=round(share * kernel.written_bytes))


def _roots(body: list[_Op]) -> list[_Op]:
    """The operations whose results a fusion writes."""
    by_name = {op.name: op for op in body}
    root = next((op for op in body if op.root), body[-1])
    return [by_name[name] for name in root.operands] if root.kind == "tuple" else [root]


def _written(body: list[_Op], root: _Op) -> int:
    """Bytes that a fusion writes for one result: the slice alone if it updates one in place."""
    by_name = {op.name: op for op in body}
    op = root
    while op.kind == "bitcast" and op.operands and op.operands[0] in by_name:
        op = by_name[op.operands[0]]
    if op.kind == "dynamic-update-slice":
        return _bytes(by_name[op.operands[1]].result)
    return _bytes(root.result)


def _read(body: list[_Op], index: int, whole: str) -> int:
    """Bytes that a fusion reads of an operand: slices alone if nothing else uses it."""
    start = rf" parameter\({index}\)"
    names = {op.name for op in body if op.kind == "parameter" and re.search(start, op.line)}
    if not names:
        return _bytes(whole)
    if not _bytes(whole):
        return 0  # in on-chip memory
    total = 0
    for op in body:
        if not names & set(op.operands):
            continue
        first = op.operands[0] in names and not names & set(op.operands[1:])
        if op.kind == "bitcast":
            names.add(op.name)
        elif op.kind in ("dynamic-slice", "slice", "gather") and first:
            total += _bytes(op.result)
        elif not (op.kind == "dynamic-update-slice" and first):
            return _bytes(whole)
    return min(total, _bytes(whole))


def _flops(op: _Op, types: dict[str, str]) -> float:
    """FLOPs of a matrix product, or of a library's call for one."""
    operands = [_shape(types.get(name, "")) for name in op.operands]
    result = math.prod(_shape(op.result))
    if op.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.line)
        return 2.0 * result * _product(operands[0], contracted)
    if op.kind == "convolution":  # the TPU compiler's form of every product
        return _convolution(op.line, operands[0], operands[1], _shape(op.result))
    if op.kind != "custom-call":
        return 0.0
    if "__cublas" in op.line:
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.line)
        return 2.0 * result * _product(operands[0], contracted)
    if "__cudnn$fmha" in op.line:
        # query and key of (B, T, N, H) and (B, S, N, H): two products forwards, and five backwards,
        # which recomputes the logits
        query, keys = operands[0], operands[1][1]
        return 2.0 * math.prod(query) * keys * (5 if "Backward" in op.line else 2)
    return 0.0


def _convolution(line: str, left: list[int], right: list[int], result: list[int]) -> float:
    """FLOPs of a convolution, without those of padding and of the zeros between dilated elements.

    The TPU compiler turns batch axes into spatial ones, dilated so that each of them meets only
    itself; all positions of the window would count a product once per pair of batch elements.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    if labels is None:
        return 2.0 * math.prod(result) * math.prod(right)
    window = re.search(r"window=\{([^}]*)\}", line)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}

    def numbers(name: str, spatial: int) -> list[int]:
        text = fields.get(name)
        return [int(number) for number in text.split("x")] if text else [1] * spatial

    spatial = sum(label.isdigit() for label in labels[1])
    sizes, strides = numbers("size", spatial), numbers("stride", spatial)
    spread_left, spread_right = numbers("lhs_dilate", spatial), numbers("rhs_dilate", spatial)
    pads = [int(pad.split("_")[0]) for pad in fields["pad"].split("x")] if "pad" in fields else []
    pads = pads or [0] * spatial
    flops = 2.0
    for label in "bf":  # rows and columns of the result
        flops *= result[labels[3].index(label)]
    flops *= right[labels[2].index("i")]
    for axis in range(spatial):
        length, steps = left[labels[1].index(str(axis))], result[labels[3].index(str(axis))]
        starts = (step * strides[axis] - pads[axis] for step in range(steps))
        places = (
            start + offset * spread_right[axis] for start in starts for offset in range(sizes[axis])
        )
        last = (length - 1) * spread_left[axis]
        flops *= sum(0 <= place <= last and place % spread_left[axis] == 0 for place in places)
    return flops


def _product(shape: list[int], dims: re.Match[str] | None) -> int:
    return math.prod(shape[int(i)] for i in re.findall(r"\d+", dims[1])) if dims else 1


class Cost(NamedTuple):
    """The cost of one call of a program on one device."""

    kernels: int
    bytes: int
    flops: float  # matrix products that the compiled program shows
    by_kind: dict[str, list[float]]  # number, GB, TFLOP


def cost(parts: list[Kernel]) -> Cost:
    """The sum over kernels."""
    number, moved = Counter[str](), Counter[str]()
    flops: dict[str, float] = dict.fromkeys((kernel.kind for kernel in parts), 0.0)
    for kernel in parts:
        number[kernel.kind] += kernel.times
        moved[kernel.kind] += kernel.times * (kernel.read_bytes + kernel.written_bytes)
        flops[kernel.kind] += kernel.times * kernel.flops
    kinds = sorted(number, key=lambda kind: -moved[kind])
    table = {kind: [number[kind], moved[kind] / 1e9, flops[kind] / 1e12] for kind in kinds}
    return Cost(number.total(), moved.total(), sum(flops.values()), table)


def predicted_s(
    parts: list[Kernel], flops: float, flops_s: float, bytes_s: float, launch_s: float
) -> float:
    """Seconds of one call if kernels run one after another at these rates.

    A kernel takes the longer of its arithmetic and its memory traffic, plus a launch.

    Args:
      flops: all FLOPs of the program; those of kernels whose own are unknown take extra time.
    """
    counted = sum(kernel.times * kernel.flops for kernel in parts)
    total = max(flops - counted, 0.0) / flops_s
    for kernel in parts:
        moved = kernel.read_bytes + kernel.written_bytes
        total += kernel.times * (max(kernel.flops / flops_s, moved / bytes_s) + launch_s)
    return total
