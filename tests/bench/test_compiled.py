"""Cases are configs that exist, and their table says what their rows do."""

import json

import pytest

from jvae.bench import compiled
from jvae.validation.validate import validate


@pytest.mark.parametrize("name", compiled.CASES)
def test_flags_of_a_case_are_those_of_its_config(name):
    case = compiled.CASES[name]
    config, rest = compiled.configs.from_argv(case.words)
    assert config is not None and config.name == compiled.configs.load(case.config).name
    assert config.model.decoder.dtype == "bfloat16"
    assert rest == ["--mode=compile", f"--topology={case.slices}"]
    validate(config, platform="gpu" if "h100" in case.slices else "tpu")


def test_every_stored_row_belongs_to_a_case():
    cases = {
        (case.config.replace(":", "-").replace(",train=", "-"), case.slices)
        for case in compiled.CASES.values()
    }
    for row in compiled._rows(compiled.ROWS):
        assert any(row["config"] == name and row["topology"] in slices for name, slices in cases)


def test_a_case_that_there_is_not(capsys):
    assert compiled.main(["optimus:huge"]) == 2
    assert "no case 'optimus:huge'; there are optimus:base" in capsys.readouterr().err


def test_table(tmp_path):
    row = dict(
        config="optimus-base",
        topology="v5e-8",
        chip="v5e",
        mesh={"data": 8, "fsdp": 1, "tensor": 1},
        batch_rows=8,
        row_tokens={"enc": 200, "dec": 256},
        program="train step",
        turns=1,
        model_flops=3e12,
        flops=4e12,
        resident_bytes=2**30,
        peak_bytes=3 * 2**30,
        collectives={"all-gather": [2, 2**20, 2**20], "all-reduce": [3, 2**20, 2**21]},
        bounds_ms={"arithmetic": 6.0, "memory": 2.0, "links": 2.0},
        fits=True,
        command="a command",
        commit="abc",
        jax="0.0",
        libtpu="0.1",
    )
    wide = row | dict(topology="v5e-256", bounds_ms=row["bounds_ms"] | {"links": 12.0})
    counts = dict(kernels=1200, traffic_bytes=3.5e9, predicted_ms=7.25, useful_share=0.314)
    wide |= counts
    large = row | dict(
        config="optimus-large", command="another", peak_bytes=None, needs="20G of 16G hbm"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in (row, wide, large)))
    _, _, *lines = compiled.table(rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:3]]
    assert cells[0] == [
        *("`optimus-base`", "v5e-8", "data 8", "8 x 200 + 256", "train step", "1.00, 3.00 GiB"),
        *("3, 4", "5, 3 MiB", "6, 2, 2", "6 (arithmetic) to 10", *"–––"),
    ]
    assert cells[1][-4:-2] == ["12 (links) to 20", "50 % to 50 %"]
    assert cells[1][-2:] == ["1,200, 3.5", "7.25, 31 %"]
    assert cells[2][5:] == ["does not fit: 20G of 16G hbm", "3, 4", *"––––––"]
    assert lines[4:] == [
        "- `optimus-base`: `a command`; jax 0.0, libtpu 0.1, commit abc.",
        "- `optimus-large`: `another`; jax 0.0, libtpu 0.1, commit abc.",
    ]
