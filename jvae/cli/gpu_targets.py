"""Descriptions of GPUs for XLA to compile for them without one, as text protocol buffers.

Source: the fields of `GpuTargetConfigProto` and their values for these boards in
`xla/backends/gpu/target_config/specs` of openxla/xla; NVIDIA's H100 and H200 data sheets.
"""

from collections.abc import Mapping, Sequence

GPUS_PER_HOST = 8  # connected by NVLink

# Operations per cycle of one unit, and units per multiprocessor, by number in `PrimitiveType`.
_S8, _S32, _U8, _U32, _F16, _F32, _F64, _BF16 = 2, 4, 6, 8, 10, 11, 12, 16
_F8 = (19, 20, 23, 24, 25, 28, 29, 33, 35, 36)
_SCALAR = {_S32: (1, 64), _U32: (1, 64), _F16: (2, 128), _F32: (1, 128), _F64: (1, 64)} | {
    _BF16: (2, 128)
}
_MATRIX = {_F16: 512, _BF16: 512, _F32: 256, _F64: 32} | dict.fromkeys((_S8, _U8, *_F8), 1024)
_CLOCK_GHZ, _TENSOR_CLOCK_GHZ = 1.98, 1.83

_HOPPER = dict(
    threads_per_warp=32,
    threads_per_block_limit=1024,
    threads_per_core_limit=2048,
    core_count=132,
    fpus_per_core=128,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_core=228 << 10,
    registers_per_core_limit=1 << 16,
    registers_per_block_limit=1 << 16,
    thread_dim_limit_x=1024,
    thread_dim_limit_y=1024,
    thread_dim_limit_z=64,
    block_dim_limit_x=2**31 - 1,
    block_dim_limit_y=2**16 - 1,
    block_dim_limit_z=2**16 - 1,
    l2_cache_size=50 << 20,
    pcie_bandwidth=32 << 30,
    device_address_bits=64,
    ecc_enabled=True,
    clock_rate_ghz=_CLOCK_GHZ,
    cuda_compute_capability=[("major", 9), ("feature_extension", "ACCELERATED_FEATURES")],
    device_vendor='"NVIDIA Corporation"',
    platform_version='"Compute Capability 9.0a"',
    driver_version='"13.0.0"',
    runtime_version='"13.0.0"',
    compile_time_toolkit_version='"13.0.0"',
    dnn_version='"9.12.0"',
    device_interconnect_info=[("active_links", 18)],
)
_BOARDS = {
    "h100": dict(
        name='"NVIDIA H100 80GB HBM3"',
        device_memory_size=84_942_979_072,
        memory_bandwidth=3_352_320_000_000,
    ),
    "h200": dict(
        name='"NVIDIA H200 141GB HBM3e"',
        device_memory_size=151_397_597_184,
        memory_bandwidth=4_800_000_000_000,
    ),
}
KINDS = tuple(_BOARDS)


def target(kind: str) -> str:
    """The description of one of `KINDS`. Raises: KeyError."""
    board = _BOARDS[kind]
    scalar = [_rate(key, _CLOCK_GHZ, units, ops) for key, (ops, units) in _SCALAR.items()]
    matrix = [_rate(key, _TENSOR_CLOCK_GHZ, 4, ops) for key, ops in _MATRIX.items()]
    device = _HOPPER | board
    return _text(
        dict(
            gpu_device_info=[
                *device.items(),
                ("scalar_unit_description", scalar),
                ("matrix_unit_description", matrix),
            ],
            platform_name='"CUDA"',
            dnn_version_info=[("major", 9), ("minor", 12), ("patch", 0)],
            runtime_version=[("major", 13), ("minor", 0), ("patch", 0)],
            device_description_str=board["name"],
        )
    )


def _rate(key: int, clock_ghz: float, units: int, ops: int) -> tuple[str, list[tuple[str, object]]]:
    rate: object = [
        ("clock_rate_ghz", clock_ghz),
        ("units_per_core", units),
        ("ops_per_clock", ops),
    ]
    return "rate_infos", [("key", key), ("value", rate)]


def _text(fields: Mapping[str, object] | Sequence[tuple[str, object]]) -> str:
    """A message in the text format; a list of pairs is a message inside."""
    lines = []
    for name, value in fields.items() if isinstance(fields, Mapping) else fields:
        if isinstance(value, list):
            lines.append(f"{name} {{ {_text(value)} }}")
        else:
            lines.append(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(lines)
