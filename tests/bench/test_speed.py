"""Records as tables, and the targets."""

import json

import pytest

from jvae.bench import CASES, harness, speed
from jvae.bench.subjects import TINY
from jvae.errors import ConfigError
from jvae.experiments import results, targets


def record(case="train_step", config="optimus-tiny", program="step", preset="cpu", **values):
    row = dict(
        case=case,
        config=config,
        program=program,
        preset=preset,
        sentences_per_s=123.4,
        useful_tokens_per_s=12_345.6,
        call_ms=200.0,
        call_ms_spread=[190.0, 230.0],
        fill=dict(enc=0.96, dec=0.97, slots=0.5),
        flops_share=0.25,
        program_flops_share=None,
        compile_s=3.21,
        peak_memory_bytes=5e8,
        updates=4,
        shapes=dict(latents=256),
        command="python -m jvae.bench",
        commit="abc",
        versions=dict(jvae="0", jax="1.2"),
        allocator="glibc",
        hardware=dict(device="cpu", devices=1, cpu="x86_64", cores=2),
    )
    return row | values


def cells_of(markdown, start):
    line = next(line for line in markdown.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_table_has_a_row_for_every_model():
    text = speed.preset_tables([record()], "cpu")
    section = text.split("`data`")[0]
    cells = cells_of(section, "| `optimus-tiny`")
    assert cells[1:5] == ["12,346 ± 10 %", "123", "96 / 97 / 50", "25.0 %"]
    assert cells[5:] == ["–", "50.0", "3.21", "500"]
    assert cells_of(section, "| `t5_vae-tiny`")[1:] == ["not measured"] * 8
    assert section.count("| `") == len(TINY) + 2  # and the larger sizes
    origin = "- `python -m jvae.bench`; cpu, 2 cores x86_64; jax 1.2; allocator: glibc; commit abc."
    assert origin in text


def test_every_case_has_columns_and_can_be_shown():
    assert set(speed.COLUMNS) == set(CASES)
    rows = [
        record(case, subject.config.name, "p", batches=8, bytes_per_token=1e4, seconds=7.0)
        for case in CASES
        for subject in CASES[case].subjects["cpu"]
    ]
    assert "not measured" not in speed.preset_tables(rows, "cpu")
    assert "not measured" in speed.preset_tables(rows, "gpu")
    lines = speed.text_table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].index("model") == lines[1].index("optimus-tiny")


def test_a_peer_has_a_table_of_its_own():
    peer = record(program="torch_best", peer="torch", beside="step", ratio=1.5)
    text = speed.peer_table([record(), peer])
    cells = cells_of(text, "| cpu")
    assert cells[:4] == ["cpu", "train_step", "`optimus-tiny`", "torch_best"]
    assert cells[-2:] == ["step", "1.50"] and text.count("| cpu") == 1
    assert "torch_best" not in speed.preset_tables([record(), peer], "cpu")
    assert "not measured" in speed.peer_table([record()])


def test_targets_are_met_missed_or_not_measured():
    best = record(program="torch_best", peer="torch", ratio=1.25)
    start = record("startup", program="first_step", seconds=9.5)
    text = targets.table([best, start])
    assert cells_of(text, "| training speed of `optimus-tiny` relative to PyTorch at its")[2:] == [
        *("≥ 1", "1.25", "yes"),
    ]
    assert cells_of(text, "| warm start")[2:] == ["≤ 8", "9.5", "**no**"]
    assert cells_of(text, "| decoding, tokens/s at 1,024")[2:] == [
        "≥ 1,000,000",
        "not measured",
        "–",
    ]
    lengths = [record("data", program=name) for name in ("ptb", "yahoo", "snli")]
    assert targets.table(lengths).count("| 96 | yes |") == 3


def test_targets_name_programs_that_there_are():
    for target in targets.TARGETS:
        if target.case != "suite":
            names = [subject.config.name for subject in CASES[target.case].subjects[target.preset]]
            assert target.config in names, target.text


def test_the_whole_run_is_a_record():
    row = speed.whole_run(512.0, record())
    assert row["seconds"] == 512 and row["preset"] == "cpu" and row["commit"] == "abc"
    assert "| 512 | yes |" in targets.table([row])


def test_newer_records_take_the_place_of_older_ones(tmp_path):
    new, kept = tmp_path / "new.jsonl", tmp_path / "kept.jsonl"
    for ms in (100.0, 300.0):
        rows = [record(call_ms=ms), record(config="lm-tiny", call_ms=ms)]
        other = dict(device="another", devices=1, cpu="x86_64", cores=2)
        rows += [record(hardware=other)] if ms == 100.0 else []
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert results.take(new, kept) == len(rows)
    rows = results.read_rows(kept)
    assert [row["call_ms"] for row in rows] == [300.0, 300.0, 200.0]
    with pytest.raises(ConfigError, match="no such file"):
        results.take(tmp_path / "none.jsonl", kept)


def test_presets_have_a_table():
    assert set(harness.PRESETS) <= set(results.generated())
