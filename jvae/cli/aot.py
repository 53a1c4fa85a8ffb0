"""`--mode=compile`: compiles the programs of a run for accelerator slices that are not available.

The compiler reports the memory per chip and the collectives. Matrix products are counted in the
traced program, with loops multiplied out; kernels and memory traffic in the compiled one. The step
time is a roofline: no program can be faster than the slowest of arithmetic, memory and links at
their peaks, and a program without any overlap takes their sum. The predicted time assumes that
kernels run one after another at usual shares of the peaks (`Rates`). Nothing is measured.
"""

import contextlib
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jvae.api import Batch, Params, Prompt, Side, example_keys
from jvae.cli import gpu_targets
from jvae.data.dataset import RowSpec
from jvae.decode import DecodeConfig, decode
from jvae.errors import ConfigError
from jvae.parallel import kernels
from jvae.parallel import mesh as meshes
from jvae.parallel.collectives import collectives
from jvae.parallel.flops import declared_bytes, matmul_flops
from jvae.runs import build, phases
from jvae.runs.provenance import commit
from jvae.training import program
from jvae.validation.validate import validate


class Chip(NamedTuple):
    """Peaks of one chip in bf16; link bandwidth is what it can send over all its links at once.

    Source: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; NVIDIA's H100 and H200 data sheets
    (SXM, dense). They list links as bidirectional sums; half of that can be sent.
    """

    flops_s: float
    memory_bytes: float
    memory_bytes_s: float
    link_bytes_s: float


CHIPS = {
    "v4": Chip(275e12, 32e9, 1.228e12, 300e9),
    "v5e": Chip(197e12, 16e9, 0.819e12, 200e9),
    "v5p": Chip(459e12, 95e9, 2.765e12, 600e9),
    "v6e": Chip(918e12, 32e9, 1.638e12, 400e9),
    "h100": Chip(989e12, 80e9, 3.35e12, 450e9),
    "h200": Chip(989e12, 141e9, 4.8e12, 450e9),
}


class Rates(NamedTuple):
    """Assumed speed of kernels: shares of the peaks, and seconds per launch."""

    flops: float = 0.7
    memory: float = 0.9
    launch_s: float = 0.0


class Plugin(NamedTuple):
    """The compiler for a kind of chip: JAX's platform, and the package with the compiler."""

    platform: str
    package: str
    module: str
    install: str
    rates: Rates = Rates()
    options: Mapping[str, bool] = {}  # compiler options without a device


TPU = Plugin("tpu", "libtpu", "libtpu", "jax[tpu]")
GPU = Plugin(
    *("gpu", "jax-cuda13-plugin", "jax_cuda13_plugin", "jax[cuda13]"),
    rates=Rates(launch_s=2e-6),  # a TPU runs its whole program at once
    # Tiles of Triton's products are chosen by timing them on a device; some have no default.
    options={"xla_gpu_enable_triton_gemm": False},
)
# Usual shapes of slices that are named by their number of chips.
SHAPES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
PLAIN = dict(remat="none", xent_chunk=2**31 - 1)  # no recomputation in the backward pass

Row = dict[str, Any]


class ProgramCase(NamedTuple):
    """One program of a run; `turns`: how often its loop runs and reads the parameters."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    turns: int = 1


def compile_for(config: ConfigDict, folder: Path, names: str) -> Iterator[Row]:
    """Compiles each program of a config for every slice of `names`, such as "v5e-8,v5e-256" or
    "h100-1,h100-8"; yields a row as soon as each is compiled.

    Rows and texts per device stay as on the first slice, so that the other slices show the scaling.
    Raises: ConfigError for an unknown slice; DataError.
    """
    slices = [Slice.of(name) for name in names.split(",")]
    prepare(slices)
    for part in slices:  # this may create devices
        validate(config, platform="cpu" if part.virtual else part.plugin.platform)
    first = 0
    for part in slices:
        mesh = meshes.make_mesh(config.mesh, devices(part))
        shards = meshes.row_shards(mesh)
        first = first or shards
        part_config = ConfigDict(config.to_dict())
        part_config.data.batch_rows = _scaled(config.data.batch_rows, shards, first)
        part_config.decode.batch = _scaled(config.decode.batch, shards, first)
        run = build.open_run(part_config, folder)
        about = {
            "config": config.name,
            "topology": part.name,
            "chip": part.kind,
            "virtual": part.virtual,
            "mesh": dict(mesh.shape),
            "batch_rows": run.rows.batch_rows,
            "row_tokens": run.rows.row,
            "commit": commit(),
            "jax": jax.__version__,
            "compiler": part.compiler,
        }
        plain = _programs(without_recomputation(run), mesh)
        for case, plain_case in zip(_programs(run, mesh), plain, strict=True):
            chip = CHIPS.get(part.kind)
            row = estimate(case, plain_case, part.count, chip, part.plugin)
            yield about | row | _bounds(row, chip)


def without_recomputation(run: build.Run) -> build.Run:
    """The same run, but keeping every intermediate value."""
    config = ConfigDict(run.config.to_dict())
    for section in config.model.values():
        if isinstance(section, ConfigDict):
            section.update({name: value for name, value in PLAIN.items() if name in section})
    return run._replace(config=config.lock(), model=build.build_model(config))


def _scaled(rows: int, shards: int, first: int) -> int:
    """The same rows per shard as `rows` has on the first slice, rounded up."""
    return -(-rows // first) * shards


class Slice(NamedTuple):
    """A slice by name: its kind of chip, their number, and their shape if known."""

    name: str
    kind: str
    count: int
    shape: str | None

    @classmethod
    def of(cls, name: str) -> "Slice":
        """Raises: ConfigError for an invalid name."""
        match = re.fullmatch(r"(\w+)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
        if not match or match[1] not in (*CHIPS, "cpu"):
            raise ConfigError(
                f"--topology={name}: expected cpu-8, or one of {', '.join(CHIPS)} with a number "
                "of chips or, for TPUs, a shape, such as v5e-8 or v5e:2x4"
            )
        if match[1] in gpu_targets.KINDS:
            return cls(name, match[1], *_hosts(name, match[2]))
        if match[2]:
            return cls(name, match[1], int(match[2]), SHAPES.get(int(match[2])))
        return cls(name, match[1], math.prod(int(size) for size in match[3].split("x")), match[3])

    @property
    def plugin(self) -> Plugin:
        """The compiler plugin for its chips."""
        return GPU if self.kind in gpu_targets.KINDS else TPU

    @property
    def virtual(self) -> bool:
        """Whether CPU devices have to substitute for its chips."""
        return self.kind == "cpu" or not _installed(self.plugin)

    @property
    def compiler(self) -> str | None:
        """Package and version of the compiler for its chips; None for virtual devices."""
        package = self.plugin.package
        return None if self.virtual else f"{package} {metadata.version(package)}"


def _hosts(name: str, number: str | None) -> tuple[int, str]:
    """The number of GPUs, and JAX's name of the topology: slices x hosts x GPUs per host."""
    count, host = int(number or 0), gpu_targets.GPUS_PER_HOST
    if not count or (count > host and count % host):
        raise ConfigError(
            f"--topology={name}: expected a number of GPUs up to {host}, or a multiple of that, "
            "such as h100-8"
        )
    return count, f"1x{max(count // host, 1)}x{min(count, host)}"


def _installed(plugin: Plugin) -> bool:
    return importlib.util.find_spec(plugin.module) is not None


def prepare(parts: Sequence[Slice]) -> None:
    """Settings for `devices` of these slices, which apply only before any device exists: enough CPU
    devices, unless XLA_FLAGS sets a number, and no check of CUDA's libraries.
    """
    virtual = [part.count for part in parts if part.virtual]
    if virtual and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(virtual))
    if any(part.plugin is GPU and not part.virtual for part in parts):
        # Some of the libraries report no version without a driver.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def devices(part: Slice) -> list[Any]:
    """The chips of a slice, or CPU devices instead. Raises: ConfigError for too few."""
    if not part.virtual and part.plugin is GPU:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=gpu_targets.target(part.kind), topology=part.shape
        )
        return list(topology.devices)
    if not part.virtual:
        if part.shape is None:
            raise ConfigError(f"--topology={part.name}: name its shape, such as {part.kind}:2x4")
        os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
        os.environ |= dict(TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-8")
        name = f"{part.kind}:{part.shape}"
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
        return list(topology.devices)
    devices = jax.devices("cpu")
    if len(devices) < part.count:
        raise ConfigError(
            f"--topology={part.name}: {len(devices)} virtual CPU devices are too few for "
            f"{part.count}; set XLA_FLAGS=--xla_force_host_platform_device_count={part.count}"
        )
    return devices[: part.count]


def _like(tree: Any, where: Sharding) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)


def training_steps(run: build.Run, mesh: Mesh) -> Iterator[ProgramCase]:
    """The train step of each phase; its arguments are a state, a batch and a key."""
    batch = _like(_batch(run.rows), meshes.batch_sharding(mesh))
    key = _like(jax.eval_shape(lambda: jax.random.key(0)), meshes.replicated(mesh))
    for phase in phases.resolve(run.config):
        current = program.compile_phase(run, phase, mesh, begin=0)
        name = f"train step, {phase.name}" if phase.name else "train step"
        yield ProgramCase(name, current.train_step, (current.abstract, batch, key))


def _programs(run: build.Run, mesh: Mesh) -> Iterator[ProgramCase]:
    """Train steps, the chains of models that use them, the sampler and the greedy decoder."""
    model, gen, params, batch, key = run.model, run.model.gen, None, _batch(run.rows), None
    for case in training_steps(run, mesh):
        yield case
        state, batch, key = case.arguments
        params = state.params

    if model.post.sampler:

        def chains(params: Params, batch: Batch, key: Key[Array, ""]) -> Array:
            cond = gen.condition(params, batch)
            key_e = example_keys(key, batch.id_e)
            return model.post.mean(params, model.post.encode(params, batch, cond=cond, key_e=key_e))

        steps = run.config.model.chain.steps
        yield ProgramCase("chains", jax.jit(chains), (params, batch, key), steps)
    if batch.cond is not None:
        return  # a sampler's prompt depends on its sources
    examples, length = run.config.decode.batch, run.config.decode.max_length
    # In one stage: every loop of unknown length is assumed to run `turns` times.
    all_keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), examples))
    keys = _like(all_keys, meshes.batch_sharding(mesh))
    for name, method in (("sampler", "sample"), ("greedy decoder", "greedy")):
        limits = DecodeConfig(method=method, max_length=length, room=length)

        def texts(params: Params, key_e: Key[Array, "e"], limits: DecodeConfig = limits) -> Array:
            z_egz = model.prior.sample(params, key_e, None)
            # Any token will do: nothing is run.
            prompt = Prompt(jnp.zeros((examples, 1), jnp.int32), jnp.ones(examples, jnp.int32))
            ends = dict(end_id=run.decoder.end_id, pad_id=run.decoder.pad_id)
            return decode(gen, params, z_egz, prompt, key_e, limits, **ends).token_et

        name = f"{name}, {examples} texts of {length} tokens"
        loop = max(length - 1, 1)  # the first token needs no step
        yield ProgramCase(name, jax.jit(meshes.under(mesh, texts)), (params, keys), loop)


def _batch(rows: RowSpec) -> Batch:
    """The shapes of the longest batch in training."""

    def array(*shape: int, dtype: DTypeLike = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((rows.batch_rows, *shape), dtype)

    sides = {side: Side(*[array(length)] * 3) for side, length in rows.row.items()}
    scored_bt = array(rows.dec_row, dtype=jnp.bool_)
    id_e: Any = jax.ShapeDtypeStruct((rows.batch_rows * rows.slots,), jnp.int32)
    return Batch(sides.get("enc"), sides["dec"], sides.get("cond"), scored_bt, id_e)


def memory_needed(message: str) -> str:
    """How much memory a program needs, from the error of a compiler for which it does not fit."""
    size = r"([\d.]+[KMGT]?)"
    if used := re.search(rf"Used {size} of {size} (\w+)", message):
        return f"{used[1]} of {used[2]} {used[3]}"
    if used := re.search(rf"temporaries \({size}\) exceeds available (\w+) \({size}\)", message):
        return f"{used[1]} of {used[3]} {used[2]} for temporaries alone"
    return "more memory than the chip has"


def estimate(
    part: ProgramCase,
    plain: ProgramCase,
    chips: int,
    chip: Chip | None = None,
    plugin: Plugin | None = None,
) -> Row:
    """Bytes, FLOPs, kernels and collectives of one program, per chip; sizes are None if the
    compiler runs out of memory on the chip.

    Args:
      plain: the same program without recomputation, whose FLOPs are the useful ones.
      chip: for the predicted time, which is left out without one.
      plugin: the compiler; None to compile for the devices of this machine.
    """
    traced = part.function.trace(*part.arguments)
    model = plain.function.trace(*plain.arguments)
    row: Row = {
        "program": part.name,
        "turns": part.turns,
        "model_flops": matmul_flops(model.jaxpr, part.turns) / chips,
        "flops": matmul_flops(traced.jaxpr, part.turns) / chips,
    }
    begin = time.monotonic()
    try:
        compiled = traced.lower().compile(dict(plugin.options) if plugin else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"peak_bytes": None, "needs": memory_needed(str(error))}
    memory = compiled.memory_analysis()
    arguments = int(memory.argument_size_in_bytes)
    total = arguments + int(memory.output_size_in_bytes) + int(memory.temp_size_in_bytes)
    peak = int(getattr(memory, "peak_memory_in_bytes", 0) or 0)  # not all of it live at once
    if peak < memory.temp_size_in_bytes:  # the CPU backend leaves out temporaries
        peak = 0
    hlo = compiled.as_text()
    traffic = collectives(hlo, chips, part.turns)
    every_kernel = kernels.kernels(hlo, part.turns, declared_bytes(traced.jaxpr))
    counted = kernels.cost(every_kernel)
    row |= {"kernels": counted.kernels, "traffic_bytes": counted.bytes}
    if chip is not None:
        rates = plugin.rates if plugin else Rates()
        speeds = (chip.flops_s * rates.flops, chip.memory_bytes_s * rates.memory, rates.launch_s)
        seconds = kernels.predicted_s(every_kernel, row["flops"], *speeds)
        row["predicted_ms"] = 1e3 * seconds
        row["useful_share"] = row["model_flops"] / (seconds * chip.flops_s)
    return row | {
        "compile_s": round(time.monotonic() - begin, 1),
        "resident_bytes": arguments,
        "peak_bytes": peak or total - int(memory.alias_size_in_bytes),
        "temp_bytes": int(memory.temp_size_in_bytes),
        "collectives": {kind: list(totals) for kind, totals in sorted(traffic.items())},
    }


def _bounds(row: Row, chip: Chip | None) -> Row:
    """Least milliseconds by each possible bottleneck."""
    if chip is None or row["peak_bytes"] is None:
        return {}
    sent = sum(sent for _, _, sent in row["collectives"].values())
    bounds = {
        "arithmetic": row["flops"] / chip.flops_s,
        "memory": row["traffic_bytes"] / chip.memory_bytes_s,
        "links": sent / chip.link_bytes_s,
    }
    fits = row["peak_bytes"] <= chip.memory_bytes
    return {"fits": fits, "bounds_ms": {name: 1e3 * bound for name, bound in bounds.items()}}


def show(rows: Iterable[Row], say: Callable[[str], None]) -> list[Row]:
    """Prints each row as it comes, then the scaling from the first slice to the others."""
    seen: list[Row] = []
    for row in rows:
        before = seen[-1] if seen else {}
        if any(row[name] != before.get(name) for name in ("topology", "mesh")):
            say(_heading(row))
        say(f"  {_line(row)}")
        seen.append(row)
    for row in seen:
        if scales := scaling(row, seen):
            low, high = sorted(scales)
            say(
                f"{row['program']}: {row['topology']} keeps {100 * low:.0f} to {100 * high:.0f} % "
                f"of the speed per chip on {seen[0]['topology']}"
            )
    return seen


def scaling(row: Row, rows: Iterable[Row]) -> tuple[float, float] | None:
    """Share of the first slice's speed per chip that another slice keeps with as many rows per
    chip: if everything overlaps, and if nothing does. None for the first slice, and if either is
    unknown.
    """
    same = ("config", "program", "chip") if row["turns"] == 1 else ("config", "chip")
    kind = row["program"].partition(",")[0]
    for first in rows:
        alike = all(first[name] == row[name] for name in same)
        if alike and first["program"].partition(",")[0] == kind:
            same_topology = first["topology"] == row["topology"]
            if same_topology or "bounds_ms" not in row or "bounds_ms" not in first:
                return None
            now, then = row["bounds_ms"].values(), first["bounds_ms"].values()
            return max(then) / max(now), sum(then) / sum(now)
    return None


def _heading(row: Row) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
    tokens = ", ".join(f"{side} {n}" for side, n in row["row_tokens"].items())
    note = ""
    if row["virtual"] and row["chip"] != "cpu":
        plugin = GPU if row["chip"] in gpu_targets.KINDS else TPU
        note = f" ({plugin.package} is not installed: compiled for as many virtual CPU devices)"
    return (
        f"{row['config']} on {row['topology']}{note}, mesh {mesh}, {row['batch_rows']} rows of "
        f"tokens {tokens}"
    )


def _line(row: Row) -> str:
    counted = (
        f"{row['flops'] / 1e9:.4g} GFLOP per chip, {row['model_flops'] / 1e9:.4g} of the model"
    )
    if row["peak_bytes"] is None:
        return f"{row['program']}: DOES NOT FIT, needs {row['needs']}; {counted}"
    kinds = ", ".join(
        f"{count} {kind} {size / 2**20:.1f} MiB"
        for kind, (count, size, _) in row["collectives"].items()
    )
    moved = f"{row['kernels']} kernels move {row['traffic_bytes'] / 1e9:.3g} GB"
    text = (
        f"{row['program']}: {row['resident_bytes'] / 2**20:.0f} MiB resident, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB at most, {counted}; {moved}; "
        f"{kinds or 'no collectives'}; compiled in {row['compile_s']:.0f} s"
    )
    if "bounds_ms" not in row:
        return text
    bounds = row["bounds_ms"]
    worst = max(bounds, key=lambda name: bounds[name])
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    return (
        f"{text}; {fits}; at least {bounds[worst]:.3g} ms ({worst}), {sum(bounds.values()):.3g} ms "
        f"if nothing overlaps; predicted {row['predicted_ms']:.4g} ms, "
        f"{100 * row['useful_share']:.3g} % of the peak useful"
    )
