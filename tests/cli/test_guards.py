"""What programs for accelerators must not do, read from compiled programs; no device is needed."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from jvae import config
from jvae.cli import aot
from jvae.parallel import mesh as meshes
from jvae.parallel.collectives import collectives
from jvae.parallel.kernels import Kernel, kernels
from jvae.runs import build

pytestmark = pytest.mark.slow
GPU = pytest.param("h100", marks=pytest.mark.gpu)
TPU = pytest.param("v5e", marks=pytest.mark.tpu)
COUNT = {"h100": ("h100-1", "h100-8"), "v5e": ("v5e-4", "v5e-8")}
TEXTS, TOKENS = 256, 16
WORDS = (
    *(f"model.{side}.{value}" for side in ("encoder", "decoder") for value in ("dtype=bfloat16",)),
    *(f"data.batch_rows=64 decode.batch={TEXTS} decode.max_length={TOKENS}".split()),
    *("model.encoder.unroll=1", "model.decoder.unroll=1"),
)


class Compiled(NamedTuple):
    """A program, and what its compiler says of it."""

    case: aot.ProgramCase
    run: build.Run
    hlo: str
    memory: Any
    chips: int

    @property
    def kernels(self) -> list[Kernel]:
        return kernels(self.hlo, self.case.turns)


def compiled(kind: str, name: str, folder: Path, *words: str, many: bool = False) -> Compiled:
    """Compiles one program of the smallest Optimus for chips of a kind."""
    part = aot.Slice.of(COUNT[kind][many])
    pytest.importorskip(part.plugin.module, reason=f"needs {part.plugin.install}")
    cfg = config.apply_overrides(config.load("optimus:tiny"), [*WORDS, *words])
    # The smallest slice of TPUs has several chips; the program is for one of them.
    devices = aot.devices(part) if many else aot.devices(part)[:1]
    mesh = meshes.make_mesh(cfg.mesh, devices)
    run = build.open_run(cfg, folder)
    case = next(
        program_case
        for program_case in aot._programs(run, mesh)
        if program_case.name.startswith(name)
    )
    program = case.function.trace(*case.arguments).lower().compile(dict(part.plugin.options))
    return Compiled(case, run, program.as_text(), program.memory_analysis(), len(devices))


def arrays(types: str) -> list[tuple[str, tuple[int, ...]]]:
    """Number type and shape of every array of an HLO type."""
    matches = re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", types)
    return [(kind, tuple(int(size) for size in dims.split(",") if size)) for kind, dims in matches]


@pytest.mark.parametrize("kind", [GPU, TPU])
def test_decoding_casts_weights_once_and_copies_no_cache(kind, tmp_path):
    program = compiled(kind, "greedy", tmp_path)
    decoder = program.run.config.model.decoder
    loop = [kernel for kernel in program.kernels if kernel.times >= program.case.turns]
    assert loop
    params = jax.eval_shape(program.run.model.init, jax.random.key(0))["decoder"]
    weights = {leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
    layered = jax.tree.leaves(params["layers"])
    weights |= {leaf.size // decoder.layers for leaf in layered if leaf.ndim > 2}
    cache = TEXTS * decoder.width * (TOKENS + 1)
    for kernel in loop:
        for types, size in kernel.reads:
            for number, shape in arrays(types):
                if number == "f32" and math.prod(shape) in weights and TEXTS not in shape:
                    assert size < 4 * math.prod(shape), (
                        f"{kernel.name} reads {types} for every token"
                    )
        assert kernel.written_bytes < cache or "f32" in kernel.result, (
            f"{kernel.name} copies a cache"
        )


@pytest.mark.parametrize("kind", [GPU, TPU])
def test_fused_attention_in_training_never_writes_its_weights(kind, tmp_path):
    kernel = {"h100": "cudnn", "v5e": "splash"}[kind]
    sides = ("encoder", "decoder")
    words = [
        f"model.{side}.{value}" for side in sides for value in (f"attention={kernel}", "dropout=0")
    ]
    # Splash keeps 128 equal float32 values per query: weights of longer rows have another shape.
    words += ["data.enc_row=256", "data.dec_row=256", "data.batch_rows=16"]
    program = compiled(kind, "train", tmp_path, *words)
    rows, decoder = program.run.rows, program.run.config.model.decoder
    for length in {rows.row["enc"], rows.row["dec"]}:
        square = rows.batch_rows * decoder.heads * length * length
        for part in program.kernels:
            for number, shape in arrays(part.result):
                wide = len(shape) >= 3 and min(shape[-2:]) >= length
                assert not (number == "f32" and wide and math.prod(shape) >= square), part.result


@pytest.mark.parametrize("kind", [GPU, TPU])
def test_the_training_state_is_updated_in_place(kind, tmp_path):
    program = compiled(kind, "train", tmp_path)
    state = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.case.arguments[0])
    )
    assert program.memory.alias_size_in_bytes >= 0.99 * state


@pytest.mark.parametrize("kind", [GPU, TPU])
def test_devices_exchange_gradients_and_little_else(kind, tmp_path):
    program = compiled(kind, "train", tmp_path, many=True)
    params = program.case.arguments[0].params
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    traffic = collectives(program.hlo, program.chips, program.case.turns)
    moved = sum(totals.result_bytes for totals in traffic.values())
    assert gradients / 2 <= moved <= 2 * gradients  # bfloat16 within layers


@pytest.mark.parametrize("kind", [TPU])  # GPUs draw an element where it is used
def test_every_chip_draws_dropout_masks_of_its_own_rows_only(kind, tmp_path):
    words = ["train.dropout_rng=rbg", "model.encoder.dropout=0.1", "model.decoder.dropout=0.1"]
    program = compiled(kind, "train", tmp_path, *words, many=True)
    drawn = re.findall(r"^.+ = (.+) rng-bit-generator\(", program.hlo, re.M)
    masks = [shape for types in drawn for number, shape in arrays(types) if len(shape) > 1]
    assert masks
    assert {shape[0] for shape in masks} == {program.run.rows.batch_rows // program.chips}
