"""The harness on fake clocks and programs, and the command line."""

import json
import time

import jax.numpy as jnp
import pytest

from jvae import config as configs
from jvae.bench import CASES, decode, harness, peaks, peers, subjects
from jvae.bench.__main__ import _arguments, main
from jvae.bench.plan import plan
from jvae.errors import ConfigError
from jvae.models import FAMILIES

CPU = harness.PRESETS["cpu"]._replace(window_s=1.0)


def fake_work(name, seconds, clock, first=5.0, **changes):
    """A program that takes `first` seconds once and then the given ones in turn."""
    waits = iter([first, *seconds])

    def call():
        clock[0] += next(waits)
        return jnp.zeros(())

    values = dict(sentences=10, tokens=60, shapes={"rows": 2}, extra={"k": 3}) | changes
    return harness.Work(name, call, **values)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def records(works):
    return harness.records("some", works, CPU, configs.load("optimus"), "python -m jvae.bench some")


def test_windows_are_taken_in_turn_behind_a_warm_up(clock):
    # The second call after compilation is the slow one; the third shows how many fill a window. A
    # call as long as a window needs no third.
    a = fake_work("a", [0.75, 0.5, *[0.5, 0.5], *[1.0, 1.0], *[0.25, 0.25]], clock)
    b = fake_work("b", [2.0, 1.0, 3.0, 2.0], clock)
    actual = harness.windows([a, b], window_s=1.0)
    for row in actual.values():
        assert len(row.pop("host_s")) == 3
    both = dict(first_s=5.0)
    assert actual["a"] == both | {"once_s": 0.5, "calls": 2, "call_s": [0.5, 1.0, 0.25]}
    assert actual["b"] == both | {"once_s": 2.0, "calls": 1, "call_s": [1.0, 3.0, 2.0]}
    with pytest.raises(ValueError, match="distinct names"):
        harness.windows([a, a], window_s=1.0)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def test_only_a_peer_may_be_too_large_for_memory(clock, capsys):
    def fails(error):
        def call():
            raise error

        return call

    ours = fake_work("step", [1.0, 2.0, 2.0, 2.0], clock)
    peer = fake_work("torch_best", [1.0] * 4, clock, extra=dict(peer="torch", beside="step"))
    large = peer._replace(name="torch_original", call=fails(OutOfMemoryError("CUDA")))
    assert [row["program"] for row in records([ours, large, peer])] == ["step", "torch_best"]
    assert capsys.readouterr().err == "torch_original: does not fit into memory, not measured\n"

    full = ours._replace(call=fails(RuntimeError("RESOURCE_EXHAUSTED: 80 GiB")))
    with pytest.raises(ConfigError, match="step does not fit into the memory"):
        records([full])
    with pytest.raises(RuntimeError, match="device lost"):
        records([large._replace(call=fails(RuntimeError("device lost")))])


def test_a_record_says_what_it_rests_on(clock):
    work = fake_work("a", [1.0, 2.0, 4.0, 3.0], clock, fill={"dec": 0.5})
    (record,) = records([work])
    assert record["call_ms"] == 3000 and record["call_ms_spread"] == [2000, 4000]
    assert record["sentences_per_s"] == pytest.approx(10 / 3)
    assert record["useful_tokens_per_s"] == pytest.approx(20)
    assert record["compile_s"] == 4 and record["windows"] == 3 and record["k"] == 3
    assert record["shapes"] == {"rows": 2} and record["dtype"] == "float32"
    assert record["fill"] == {"dec": 0.5} and record["preset"] == "cpu"
    assert record["command"] == "python -m jvae.bench some"
    assert record["versions"]["jax"] and record["hardware"]["cores"] and record["allocator"]
    assert record["peak_memory_bytes"] > 1 << 20
    assert "flops_per_s" not in record  # nothing was counted
    json.dumps(record, allow_nan=False)


def test_work_is_set_against_the_peaks(clock, monkeypatch):
    monkeypatch.setattr(peaks, "of_device", lambda dtype: peaks.Peak(100.0, None, "made up"))
    seconds = [1.0, 2.0, 2.0, 2.0]
    work = fake_work("a", seconds, clock, flops=50.0, program_flops=150.0, read_bytes=8.0)
    (record,) = records([work])
    assert record["flops_per_s"] == 25 and record["flops_share"] == 0.25
    assert record["program_flops_share"] == 0.75
    assert record["bytes_per_s"] == 4 and record["bytes_share"] is None
    assert record["peak"] == dict(flops=100.0, memory_bytes_s=None, source="made up")


def test_a_peer_is_set_beside_our_program(clock):
    ours = fake_work("step", [1.0, 1.0, 1.0, 1.0], clock)
    beside = dict(peer="torch", beside="step")
    theirs = fake_work("torch_best", [3.0, 3.0, 3.0, 3.0], clock, extra=beside, compiles=False)
    first, second = records([ours, theirs])
    assert second["ratio"] == pytest.approx(3) and "torch" in second["versions"]
    assert second["compile_s"] is None and "ratio" not in first


def test_memory_of_an_earlier_case_is_forgotten():
    buffer = bytearray(b"x") * (256 << 20)
    most = harness.peak_memory()
    del buffer
    harness.forget_peak_memory()
    if harness.peak_memory() >= most:
        pytest.skip("this system does not let a process forget its peak")
    assert most - harness.peak_memory() > 128 << 20


def test_peaks_by_name_of_the_device():
    assert peaks.of_kind("NVIDIA H200", "bfloat16")[:2] == (989e12, 4.8e12)
    assert peaks.of_kind("NVIDIA A100-SXM4-80GB", "bfloat16").memory_bytes_s == 2.039e12
    assert peaks.of_kind("NVIDIA L40S", "float32").flops is None  # the table knows bfloat16 alone
    assert peaks.of_kind("TPU v5 lite", "bfloat16").flops == 197e12
    assert peaks.of_kind("TPU v5", "bfloat16").flops == 459e12
    assert peaks.of_kind("a new one", "bfloat16")[:2] == (None, None)


def test_the_peak_of_a_cpu_is_measured(clock, monkeypatch):
    waits = iter([0.0, 4.0, 3.0, 2.0, 5.0, 6.0] + [8.0] * 6 + [0.0, 1.0, 2.0, 2.0, 2.0, 2.0])

    def program(function):
        def call(argument):
            clock[0] += next(waits)
            return argument

        return call

    monkeypatch.setattr(peaks.jax, "jit", program)
    peak = peaks._measured.__wrapped__(4, 8, 2)
    assert peak.flops == 2 * 4**3 / 2.0 and peak.memory_bytes_s == 8 * 2 * 4 / 1.0
    assert "4 x 4" in peak.source


def test_devices_and_names_are_checked(capsys, monkeypatch):
    with pytest.raises(ConfigError, match="needs a TPU, but JAX runs on cpu"):
        harness.check_platform("tpu")
    with pytest.raises(ConfigError, match="expected one of cpu, gpu, tpu"):
        harness.check_platform("npu")
    assert main(["iw_nl"]) == 2
    assert "no case 'iw_nl'; there are" in capsys.readouterr().err
    assert main(["--windows=2"]) == 2
    assert "at least 3" in capsys.readouterr().err
    assert main(["encode", "--out=none/rows.jsonl"]) == 2
    assert "--out=none/rows.jsonl: cannot be written" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected torch"):
        peers.require("tf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[peer\]'"):
        peers.require("torch")


@pytest.mark.slow
def test_every_model_is_a_subject_of_what_all_models_do():
    families = {subject.config.model.family for subject in subjects.TINY}
    assert families == set(FAMILIES)
    for name in ("train_step", "encode", "decode", "prior_sample", "startup"):
        measured = {subject.config.model.family for subject in CASES[name].subjects["cpu"]}
        assert measured == families, name
    for case in CASES.values():
        for case_subjects in case.subjects.values():
            names = [subject.config.name for subject in case_subjects]
            assert len(set(names)) == len(names)  # it distinguishes records


def test_each_model_is_opened_once(capsys):
    selection = plan(_arguments(["decode", "encode"]))
    assert [list(named_cases) for _, named_cases in selection] == [["decode", "encode"]] * len(
        subjects.TINY
    )
    ((subject, named_cases),) = plan(_arguments(["data", "--config=lm", "--data=a.txt"]))
    assert subject.config.data.train == ("a.txt",) and list(named_cases) == ["data"]
    assert subject.words == ("--config=lm", "--config.data.train=a.txt")
    names = [name for _, named_cases in plan(_arguments([])) for name in named_cases]
    assert names.count("startup") == 1 and names.count("decode") == len(subjects.TINY)
    assert len(plan(_arguments(["startup"]))) == len(subjects.TINY)
    assert CASES["startup"].subjects["tpu"] == ()
    with pytest.raises(ConfigError, match="not measured under --preset=tpu"):
        plan(_arguments(["startup", "--preset=tpu"]))


SMALL = """
from jvae import config

def get_config(arg=""):
    small = ("layers=1", "width=8", "heads=1", "mlp=8")
    changes = (*(f"model.decoder.{one}" for one in small), "data.vocab=300", "name=small")
    return config.apply_overrides(config.load("lm"), changes)
"""


@pytest.mark.slow
def test_the_command_writes_lines_and_shows_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "TOKENS", 3)
    monkeypatch.setattr(decode, "LATENTS", {"cpu": (1, 2)})
    monkeypatch.setattr(peaks, "of_device", lambda dtype: peaks.Peak(1e9, 1e9, "made up"))
    monkeypatch.setattr(harness.jax, "clear_caches", lambda: None)  # other tests need them
    (tmp_path / "small.py").write_text(SMALL)
    (tmp_path / "mine.txt").write_text("".join(f"the cat saw {i} dogs\n" for i in range(60)))
    words = ["decode", f"--config={tmp_path / 'small.py'}", f"--data={tmp_path / 'mine.txt'}"]
    out = tmp_path / "rows.jsonl"
    assert main([*words, "--seconds=0.001", "--windows=4", f"--out={out}"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["program"] for row in rows] == ["latents_1", "latents_2"]
    for row in rows:
        assert row["config"] == "small" and row["windows"] == 4
        assert row["command"].startswith("python -m jvae.bench decode --config=")
    table = said.err.split("1 of 1:")[1]
    assert "latents_2" in table and "2 programs in" in table and not said.out
