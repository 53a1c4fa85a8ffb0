"""The harness on fake clocks and programs; a case on a small model."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from jvae import config as configs
from jvae.bench import CASES, cases, harness, langevin
from jvae.bench.__main__ import main
from jvae.errors import ConfigError

SMALL = (
    *("model.encoder.width=8", "model.encoder.mlp=8", "model.encoder.heads=1"),
    *("model.decoder.width=8", "model.decoder.mlp=8", "model.decoder.heads=1"),
    *("model.latent=2", "data.batch_rows=2", "data.row_tokens=32"),
)


def fake_work(name, seconds, clock, first=5.0):
    """A program that takes `first` seconds once and then the given ones in turn."""
    waits = iter([first, *seconds])

    def call():
        clock[0] += next(waits)
        return jnp.zeros(())

    return harness.Work(name, call, sentences=10, tokens=60, shapes={"rows": 2}, extra={"k": 3})


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_windows_are_taken_in_turn_behind_a_warm_up(clock):
    # The second call after compilation is the slow one; the third tells how many fill a window.
    a = fake_work("a", [0.75, 0.5, *[0.5, 0.5], *[1.0, 1.0], *[0.25, 0.25]], clock)
    b = fake_work("b", [2.0, 2.0, 1.0, 3.0, 2.0], clock)
    found = harness.windows([a, b], window_s=1.0)
    for row in found.values():
        assert len(row.pop("host_s")) == 3
    assert found["a"] == {"compile_s": 4.5, "calls": 2, "call_s": [0.5, 1.0, 0.25]}
    assert found["b"] == {"compile_s": 3.0, "calls": 1, "call_s": [1.0, 3.0, 2.0]}
    with pytest.raises(ValueError, match="a name each"):
        harness.windows([a, a], window_s=1.0)


def test_a_record_says_what_it_rests_on(clock):
    work = fake_work("a", [1.0, 1.0, 2.0, 4.0, 3.0], clock)
    config = configs.load("optimus")
    (record,) = harness.records("some", [work], "cpu", config, "python -m jvae.bench some")
    assert record["call_ms"] == 3000 and record["call_ms_spread"] == [2000, 4000]
    assert record["sentences_per_s"] == pytest.approx(10 / 3)
    assert record["useful_tokens_per_s"] == pytest.approx(20)
    assert record["compile_s"] == 4 and record["windows"] == 3 and record["k"] == 3
    assert record["shapes"] == {"rows": 2} and record["dtype"] == "float32"
    assert record["command"] == "python -m jvae.bench some"
    assert record["versions"]["jax"] and record["hardware"]["cores"]
    assert record["peak_memory_bytes"] > 1 << 20
    json.dumps(record, allow_nan=False)


def test_devices_and_names_are_checked(capsys):
    with pytest.raises(ConfigError, match="needs a TPU, but JAX runs on cpu"):
        harness.check_platform("tpu")
    with pytest.raises(ConfigError, match="expected one of cpu, gpu, tpu"):
        harness.check_platform("npu")
    assert main(["iw_nl"]) == 2
    assert "no case 'iw_nl'; there are" in capsys.readouterr().err


def test_the_cost_of_the_likelihood_is_compared(monkeypatch, tmp_path):
    monkeypatch.setattr("jvae.bench.iw_nll.SAMPLES", (1, 2))
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"the cat saw {i} dogs\n" for i in range(60)))
    own = (f"data.train={path}", "data.vocab=300")
    config = configs.apply_overrides(configs.load("optimus"), (*SMALL, *own))
    this = cases.setting(config, harness.PRESETS["cpu"])
    works = CASES["iw_nll"].works(this)
    assert [work.name for work in works] == ["nll_1", "passes_1", "nll_2", "passes_2"]
    batch = this.batch()
    assert works[2].tokens == 2 * works[0].tokens == 2 * cases.useful_tokens(batch)
    assert works[0].sentences == int(batch.valid_e.sum())
    assert works[1].call().shape == (1, *batch.id_e.shape)
    records = [
        dict(program=w.name, call_ms=ms, host_ms=2 * ms, **w.extra)
        for w, ms in zip(works, (3, 2, 5, 4), strict=True)
    ]
    CASES["iw_nll"].compare(records)
    assert records[0]["cost_ratio"] == 1.5 and records[2]["cost_ratio"] == 1.25
    assert records[0]["over_linear"] == pytest.approx(5 / 3 / 2)
    assert records[0]["cost_ratio_host"] == 1.5
    assert "cost_ratio" not in records[1]


def test_chains_are_measured_beside_the_plain_step_and_the_floor(monkeypatch, capsys):
    monkeypatch.setattr(langevin, "STEPS", (1, 2))
    config = configs.apply_overrides(
        configs.load("sri:ptb"),
        ["model.decoder.width=4", "model.decoder.hidden=4", "model.latent=2", "data.batch_rows=2"],
    )
    monkeypatch.setattr(langevin, "VOCAB", 400)
    made = langevin.works(cases.setting(config, harness.PRESETS["cpu"]))
    assert [work.name for work in made] == ["plain", "chain_1", "chain_2"]
    moved = [jax.device_get(work.call()[1]["rec"].sum) for work in made]
    assert len({float(nats) for nats in moved}) == 3  # every K reads another z
    records = [
        dict(program=w.name, call_ms=ms, **w.extra) for w, ms in zip(made, (2, 3, 9), strict=True)
    ]
    langevin.compare(records)
    assert [r.get("ratio") for r in records] == [None, 1.5, 4.5]
    assert [r.get("ratio_floor") for r in records] == [None, 10 / 6, 14 / 6]
    assert records[2]["over_floor"] == pytest.approx(4.5 / (14 / 6))
