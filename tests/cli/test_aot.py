"""Programs of a config on slices that are not there: by name, in memory, in time."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from jvae import config
from jvae.cli import aot, compile_cache, fit_batch, gpu_targets
from jvae.cli.main import main
from jvae.errors import ConfigError
from jvae.parallel import mesh as meshes
from jvae.runs import build

KEY = jax.random.key(0)
SMALL = ("--config=lm:tiny", "--config.data.batch_rows=8", "--mode=compile")


@pytest.mark.parametrize("name", ["v5e", "v99-8", "8", "v5e-", "", "h100", "h10-8"])
def test_a_slice_that_is_not_known(name):
    with pytest.raises(ConfigError, match="expected cpu-8, or one of v4, v5e"):
        aot.Slice.of(name)


def test_slices_by_name():
    assert aot.Slice.of("v5e-256") == ("v5e-256", "v5e", 256, "16x16")
    assert aot.Slice.of("v5p:2x2x2") == ("v5p:2x2x2", "v5p", 8, "2x2x2")
    assert aot.Slice.of("h100-1") == ("h100-1", "h100", 1, "1x1x1")
    assert aot.Slice.of("h200-16") == ("h200-16", "h200", 16, "1x2x8")
    assert aot.Slice.of("h100-8").plugin is aot.GPU and aot.Slice.of("v4-8").plugin is aot.TPU
    for name in ("h100-12", "h100-0", "h100:2x4"):
        with pytest.raises(ConfigError, match="a number of GPUs up to 8, or a multiple"):
            aot.Slice.of(name)


def test_gpus_are_described_to_the_compiler():
    """Every kind has peaks, and what two boards of one chip share is written once."""
    texts = {kind: gpu_targets.target(kind) for kind in gpu_targets.KINDS}
    assert set(texts) <= set(aot.CHIPS)
    for kind, text in texts.items():
        assert text.count("{") == text.count("}") and "True" not in text
        memory = int(re.search(r"device_memory_size: (\d+)", text)[1])
        bandwidth = int(re.search(r"memory_bandwidth: (\d+)", text)[1])
        assert 0.9 < memory / aot.CHIPS[kind].memory_bytes < 1.1
        assert 0.99 < bandwidth / aot.CHIPS[kind].memory_bytes_s < 1.01


@pytest.mark.parametrize(
    "message, needed",
    [
        ("XLA:TPU compile permanent error. Used 20.1G of 15.75G hbm.", "20.1G of 15.75G hbm"),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (19.72G) "
            "exceeds available HBM (15.75G).",
            "19.72G of 15.75G HBM for temporaries alone",
        ),
        ("Out of memory.", "more memory than the chip has"),
    ],
)
def test_the_memory_of_what_does_not_fit_is_read_from_the_error(message, needed):
    assert aot.memory_needed(f"RESOURCE_EXHAUSTED: {message}") == needed


@pytest.mark.multidevice
def test_without_libtpu_virtual_devices_stand_for_chips(monkeypatch):
    monkeypatch.setattr(aot, "_installed", lambda plugin: False)
    assert aot.devices(aot.Slice.of("v5e:2x4")) == jax.devices("cpu")
    assert aot.devices(aot.Slice.of("h100-8")) == jax.devices("cpu")
    with pytest.raises(ConfigError, match="too few for 256"):
        aot.devices(aot.Slice.of("v5e-256"))


def row(name: str, **changes) -> dict:
    """A row as `compile_for` gives it, with nothing in it that is not asked for."""
    built = dict(
        config="c",
        topology=name,
        chip="v5e",
        virtual=False,
        mesh={"data": 8},
        batch_rows=8,
        row_tokens={"dec": 32},
        program="train step",
        turns=1,
        model_flops=3e9,
        flops=4e9,
        compile_s=1.0,
        resident_bytes=2**20,
        peak_bytes=2**30,
        kernels=3,
        traffic_bytes=2**30,
        predicted_ms=9.0,
        useful_share=0.25,
        collectives={"all-reduce": [1, 2**20, 2.0**21]},
    )
    return built | changes


def test_bounds_are_peaks_of_the_chip():
    chip = aot.Chip(flops_s=2e12, memory_bytes=2**30, memory_bytes_s=2.0**31, link_bytes_s=2.0**22)
    actual = aot._bounds(row("v5e-8"), chip)
    assert actual["bounds_ms"] == {"arithmetic": 2.0, "memory": 500.0, "links": 500.0}
    assert actual["fits"] and not aot._bounds(row("v5e-8", peak_bytes=2**30 + 1), chip)["fits"]
    assert aot._bounds(row("v5e-8"), None) == {}


def test_what_is_said_of_rows():
    times = dict(arithmetic=6.0, memory=2.0, links=2.0)
    rows = [
        row("v5e-8", fits=True, bounds_ms=times),
        row("v5e-8", program="sampler", peak_bytes=None, needs="20.00G of 15.75G hbm"),
        row("v5e-256", fits=True, bounds_ms=times | {"links": 12.0}),
        row("v5e-256", program="sampler", fits=True, bounds_ms=times),
    ]
    said: list[str] = []
    assert aot.show(rows, said.append) == rows
    assert said[0] == "c on v5e-8, mesh data 8, 8 rows of tokens dec 32"
    assert said[1].endswith(
        "fits; at least 6 ms (arithmetic), 10 ms if nothing overlaps; predicted 9 ms, 25 % of the "
        "peak useful"
    )
    assert "3 kernels move 1.07 GB" in said[1]
    assert "sampler: DOES NOT FIT, needs 20.00G of 15.75G hbm" in said[2]
    assert said[3].startswith("c on v5e-256")
    assert said[6:] == ["train step: v5e-256 keeps 50 to 50 % of the speed per chip on v5e-8"]
    assert aot.scaling(rows[0], rows) is None and aot.scaling(rows[3], rows) is None


@pytest.mark.slow
@pytest.mark.multidevice
def test_the_command_on_virtual_devices(tmp_path, capsys, monkeypatch):
    """Both slices, a file of the same as JSON, and no trace of a run."""
    monkeypatch.setattr(aot, "_installed", lambda plugin: False)
    monkeypatch.setattr(compile_cache, "keep", lambda: pytest.fail("JAX cannot load what it kept"))
    sizes = [f"--config.model.decoder.{name}=16" for name in ("width", "mlp")]
    sizes += [
        "--config.model.decoder.layers=1",
        "--config.mesh.tensor=2",
        "--config.model.decoder.xent_chunk=64",
        "--config.decode.batch=8",
    ]
    folder, out = tmp_path / "run", tmp_path / "rows.jsonl"
    words = [*SMALL, *sizes, f"--workdir={folder}", f"--out={out}", "--topology=v5e-4,cpu-8"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "libtpu is not installed" in text and "all-reduce" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["topology"] for row in rows] == ["v5e-4"] * 3 + ["cpu-8"] * 3
    step, _, _, wide, sampler, greedy = rows
    assert wide["batch_rows"] == 2 * step["batch_rows"]
    assert wide["flops"] == step["flops"] > step["model_flops"] > 0  # per device, as many rows
    assert sampler["program"].startswith("sampler, 16 texts of") and "bounds_ms" in step
    assert greedy["program"].startswith("greedy decoder, 16 texts of")
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.multidevice
def test_parameters_are_sent_and_not_states(tmp_path):
    """What a cut of parameters may cost: each gathered for both passes, each gradient summed."""
    shipped = config.apply_overrides(
        config.load("lm:tiny"), ["mesh.data=1", "mesh.fsdp=8", "data.batch_rows=64"]
    )
    step = next(iter(aot.compile_for(shipped, tmp_path, "cpu-8")))
    model = build.open_run(shipped, tmp_path).model
    leaves = jax.tree.leaves(jax.eval_shape(model.init, KEY))
    parameters = sum(4 * leaf.size for leaf in leaves)
    assert parameters > 2**20
    sent = {kind: size for kind, (_, size, _) in step["collectives"].items()}
    assert parameters < sent["all-gather"] < 2.5 * parameters
    assert sent["all-reduce"] < 1.5 * parameters
    assert sent.get("all-to-all", 0) < 0.5 * parameters


def test_nothing_is_computed_again_in_the_plain_form():
    shipped = config.load("optimus:large").unlock()
    shipped.model.encoder.vocab = shipped.model.decoder.vocab = 99
    nothing: Any = None
    run = build.Run(shipped, Path(), *[nothing] * 7)
    plain = aot.without_recomputation(run).config.model
    for part in (plain.encoder, plain.decoder):
        assert (part.remat, part.xent_chunk >= 2**31 - 1) == ("none", True)
    assert shipped.model.decoder.remat == "full"


@pytest.fixture
def slice_of():
    """Compile-only devices of a slice, where there is libtpu."""
    pytest.importorskip("libtpu", reason="compiles for a TPU, which needs libtpu")
    return lambda name: aot.devices(aot.Slice.of(name))


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["v5e-8", "v5e-16", "v5e-256", "v5p:2x2x4"])
def test_every_host_of_a_slice_has_a_part_of_the_rows(slice_of, name, monkeypatch):
    """On a torus the devices of a host are not neighbours in the mesh."""
    devices = slice_of(name)
    hosts = sorted({device.process_index for device in devices})
    for sizes in (dict(data=-1), dict(fsdp=-1), dict(data=-1, fsdp=2, tensor=2)):
        mesh = meshes.make_mesh(sizes, devices)
        parts = []
        for host in hosts:
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            parts.append(meshes.row_part(mesh, 512))
        count = parts[0][1]
        assert sorted(set(parts)) == [(i, count) for i in range(count)]


@pytest.mark.slow
@pytest.mark.tpu
def test_a_real_slice(slice_of, tmp_path, capsys):
    words = ["--config=optimus:tiny", "--mode=compile", "--topology=v5e-8,v5e-256"]
    assert main([*words, "--config.data.batch_rows=64", f"--workdir={tmp_path / 'run'}"]) == 0
    text = capsys.readouterr().out
    assert text.count("at least") == 6 and "v5e-256 keeps" in text


@pytest.mark.slow
@pytest.mark.gpu
def test_gpus_that_are_not_there(tmp_path, capsys):
    pytest.importorskip(aot.GPU.module, reason="compiles for a GPU, which needs jax[cuda13]")
    out = tmp_path / "rows.jsonl"
    words = ["--config=optimus:tiny", "--mode=compile", "--topology=h100-1,h100-8", f"--out={out}"]
    assert main([*words, "--config.data.batch_rows=64", f"--workdir={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.count("at least") == 6
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["compiler"].startswith("jax-cuda13-plugin ") for row in rows)
    assert not rows[0]["collectives"] and rows[3]["collectives"]["all-reduce"]


@pytest.mark.parametrize(
    "limit, start, multiple, answer, most",
    [(100, 4, 1, 90, 3), (100, 400, 1, 90, 5), (100, 8, 8, 88, 3), (17, 64, 4, 4, 4)],
)
def test_the_largest_batch_that_fits_is_found(limit, start, multiple, answer, most):
    """Steps that hold 10 and 1 per row: 90 rows, up to a sixteenth."""
    tried = []

    def peak(rows):
        tried.append(rows)
        return 10 + rows if rows < 200 else None

    *_, last = fit_batch.largest(peak, limit, start, multiple)
    assert answer * 15 / 16 <= last <= limit - 10 and last % multiple == 0
    assert len(tried) <= most and len(set(tried)) == len(tried)


def test_what_never_fits_ends_with_none():
    assert list(fit_batch.largest(lambda rows: None, 1.0, 8, 2))[-1] == 0
