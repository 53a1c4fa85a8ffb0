"""`--mode=compile`: the programs of a run compiled for an accelerator slice that is not there.

The compiler says what one chip holds and which collectives run; matrix multiplications are counted
in the traced program, loops multiplied out. The step time is a roofline: no program can be faster
than the slowest of arithmetic, memory and links at their peaks. Nothing is measured.
"""

import contextlib
import importlib.util
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import phases, program, run
from jvae.api import Prompt, example_keys
from jvae.counting import matmul_flops
from jvae.data.dataset import eval_batches
from jvae.decode import DecodeConfig, decode
from jvae.errors import ConfigError
from jvae.parallel import mesh as meshes


class Chip(NamedTuple):
    """Peaks of one chip. Source: Google's pages on each TPU generation; bf16, both directions."""

    flops: float  # per second
    memory_bytes: float
    memory_bytes_s: float
    link_bytes_s: float


CHIPS = {
    "v4": Chip(275e12, 32e9, 1.23e12, 300e9),
    "v5e": Chip(197e12, 16e9, 0.82e12, 200e9),
    "v5p": Chip(459e12, 95e9, 2.77e12, 600e9),
    "v6e": Chip(918e12, 32e9, 1.64e12, 400e9),
}
# Chips of a slice by its usual size, where one number names it.
SHAPES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = dict(pred=1, s8=1, u8=1, bf16=2, f16=2, s16=2, u16=2, f32=4, s32=4, u32=4, f64=8, s64=8)


class Program(NamedTuple):
    """What is known of one compiled program, per chip."""

    name: str
    seconds: float  # to compile
    resident_bytes: int  # arguments: state and batch
    peak_bytes: int
    flops: float
    collectives: dict[str, tuple[int, int]]  # how many run, and the bytes they give

    @property
    def link_bytes(self) -> int:
        return sum(size for _, size in self.collectives.values())

    def roofline_s(self, chip: Chip) -> dict[str, float]:
        """Least seconds by what would bound them; memory is read and written at least once."""
        return {
            "arithmetic": self.flops / chip.flops,
            "memory": self.peak_bytes / chip.memory_bytes_s,
            "links": self.link_bytes / chip.link_bytes_s,
        }


def compile_for(config: ConfigDict, folder: Path, names: str) -> str:
    """A table of the programs of a config on every slice of `names`, "v5e-8,v5e-256".

    Rows per device stay what they are on the first slice, so that further ones show how it scales.
    Raises: ConfigError for a slice that is not known; DataError.
    """
    slices = [Slice.of(name) for name in names.split(",")]
    _make_room(max((one.count for one in slices if one.virtual), default=1))
    lines, first = [], 0
    for part in slices:
        if part.virtual and part.kind != "cpu":
            lines.append(
                f"libtpu is not installed: {part.name} as {part.count} virtual CPU devices"
            )
        devices = _devices(part)
        mesh = meshes.make_mesh(config.mesh, devices)
        shards = meshes.row_shards(mesh)
        first = first or shards
        own = ConfigDict(config.to_dict())
        own.data.batch_rows = -(-config.data.batch_rows * shards // first // shards) * shards
        this = run.open_run(own, folder)
        rows = this.rows.batch_rows
        lines.append(f"{config.name} on {part.name}, mesh {dict(mesh.shape)}, {rows} rows")
        lines += [_line(one, CHIPS.get(part.kind)) for one in _programs(this, mesh)]
    return "\n".join(lines)


class Slice(NamedTuple):
    """A slice by name: its kind of chip, their number, and their shape where that is known."""

    name: str
    kind: str
    count: int
    shape: str | None

    @classmethod
    def of(cls, name: str) -> "Slice":
        """Raises: ConfigError for a name that says nothing."""
        found = re.fullmatch(r"(\w+)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
        if not found or found[1] not in (*CHIPS, "cpu"):
            raise ConfigError(
                f"--topology={name}: expected cpu-8, or one of {', '.join(CHIPS)} with a number "
                "of chips or a shape, as v5e-8 or v5e:2x4"
            )
        if found[2]:
            return cls(name, found[1], int(found[2]), SHAPES.get(int(found[2])))
        return cls(name, found[1], math.prod(int(one) for one in found[3].split("x")), found[3])

    @property
    def virtual(self) -> bool:
        """Whether CPU devices have to stand for its chips."""
        return self.kind == "cpu" or not _has_libtpu()


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _make_room(count: int) -> None:
    """Asks for so many CPU devices; too late once there are some, or where XLA_FLAGS has."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def _devices(part: Slice) -> list[Any]:
    if not part.virtual:
        if part.shape is None:
            raise ConfigError(
                f"--topology={part.name}: give the shape of its chips, as {part.kind}:2x4"
            )
        os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
        os.environ |= dict(TPU_WORKER_HOSTNAMES="localhost")
        name = f"{part.kind}:{part.shape}"
        made = topologies.get_topology_desc(platform="tpu", topology_name=name)
        return list(made.devices)
    devices = jax.devices("cpu")
    if len(devices) < part.count:
        raise ConfigError(
            f"--topology={part.name}: {len(devices)} virtual CPU devices are too few for "
            f"{part.count}; set XLA_FLAGS=--xla_force_host_platform_device_count={part.count}"
        )
    return devices[: part.count]


def _programs(this: run.Run, mesh: Mesh) -> Iterator[Program]:
    """Train step, sampler, and the chains of a model that has them."""
    plan = phases.resolve(this.config)
    current = program.compile_phase(this, plan[0], mesh, begin=0)
    rows = meshes.batch_sharding(mesh)
    one = meshes.replicated(mesh)

    def like(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    batch = like(next(iter(eval_batches(this.data["train"], this.rows))), rows)
    key = like(jax.eval_shape(lambda: jax.random.key(0)), one)
    yield _compiled("train step", current.train_step, current.abstract, batch, key)

    model, gen = this.model, this.model.gen
    params = current.abstract.params
    if run.build_sampler(this.config, model):

        def chains(params: Any, batch: Any, key: Any) -> Any:
            cond = gen.condition(params, batch)
            key_e = example_keys(key, batch.id_e)
            return model.post.mean(params, model.post.encode(params, batch, cond=cond, key_e=key_e))

        yield _compiled("chains", jax.jit(chains), params, batch, key)
    if batch.cond is not None:
        return  # a sampler's prompt depends on its sources
    shards = meshes.row_shards(mesh)
    examples = -(-this.config.decode.batch // shards) * shards
    limits = DecodeConfig(method="sample", max_length=this.config.decode.max_length)

    def sample(params: Any, key_e: Any) -> Any:
        z_egz = gen.sample_prior(params, key_e, None)
        # Any token does: nothing is run.
        prompt = Prompt(jnp.zeros((examples, 1), jnp.int32), jnp.ones(examples, jnp.int32))
        ends = dict(end_id=this.decoder.end_id, pad_id=this.decoder.pad_id)
        return decode(gen, params, z_egz, prompt, key_e, limits, **ends).token_et

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), examples))
    yield _compiled(f"sampler, {examples} texts", jax.jit(sample), params, like(keys, rows))


def _compiled(name: str, function: Any, *arguments: Any) -> Program:
    begin = time.monotonic()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    chips = len(jax.tree.leaves(arguments)[0].sharding.device_set)
    arguments_bytes = int(memory.argument_size_in_bytes)
    peak = int(getattr(memory, "peak_memory_in_bytes", 0) or 0)
    used = arguments_bytes + int(memory.output_size_in_bytes) + int(memory.temp_size_in_bytes)
    return Program(
        name,
        time.monotonic() - begin,
        arguments_bytes,
        max(peak, used - int(memory.alias_size_in_bytes)),
        matmul_flops(traced.jaxpr) / chips,
        collectives(compiled.as_text()),
    )


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """(how many run, bytes of their results) by kind, of a compiled program's text.

    Those in a loop whose number of turns the compiler knows count that often, others once.
    """
    own: dict[str, Counter[tuple[str, int]]] = {}
    calls: dict[str, Counter[str]] = {}
    entry = here = ""
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            here = header[2]
            entry = here if header[1] else entry
            own[here], calls[here] = Counter(), Counter()
        found = re.search(r"= (.*?) ([a-z\-]+)\(", line)
        if not found or not here:
            continue
        kind = found[2].removesuffix("-start")
        if kind in COLLECTIVES:
            own[here][kind, _size(found[1], kind != found[2])] += 1
        turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line) if kind == "while" else None
        for called in re.findall(r"(?:body|calls|to_apply|computation)=%?([\w.\-]+)", line):
            calls[here][called] += int(turns[1]) if turns else 1
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[here].update(re.findall(r"[\w.\-]+", branches))
    total: dict[str, tuple[int, int]] = {}

    def add(name: str, times: int) -> None:
        for (kind, size), count in own.get(name, Counter()).items():
            many, most = total.get(kind, (0, 0))
            total[kind] = many + times * count, most + times * count * size
        for called, count in calls.get(name, Counter()).items():
            add(called, times * count)

    add(entry, 1)
    return total


def _size(shapes: str, begun: bool) -> int:
    """Bytes of a result; one that is only begun holds its operand too, so the largest part is."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(one) for one in dims.split(",") if one)
        for kind, dims in parts
    ]
    return max(sizes, default=0) if begun else sum(sizes)


def _line(one: Program, chip: Chip | None) -> str:
    kinds = ", ".join(
        f"{count} {kind} {size / 2**20:.1f} MiB"
        for kind, (count, size) in sorted(one.collectives.items())
    )
    text = (
        f"  {one.name}: {one.resident_bytes / 2**20:.0f} MiB resident, "
        f"{one.peak_bytes / 2**20:.0f} MiB at most, {one.flops / 1e9:.2f} GFLOP per chip; "
        f"{kinds or 'no collectives'}; compiled in {one.seconds:.0f} s"
    )
    if chip is None:
        return text
    bounds = one.roofline_s(chip)
    worst = max(bounds, key=lambda name: bounds[name])
    fits = "fits" if one.peak_bytes <= chip.memory_bytes else "DOES NOT FIT"
    return f"{text}; {fits}; at least {1e3 * bounds[worst]:.2f} ms ({worst})"
