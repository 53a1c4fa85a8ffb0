"""Sweeps: combinations, launch lines that parse, one table and figure of what has finished."""

import json
import shlex
from pathlib import Path

import pytest

from jvae import config as configs
from jvae.cli import sweep
from jvae.cli.main import main
from jvae.errors import ConfigError, DataError

AXES = ["objective.beta.stop=0.1, 1", "config.model.latent=4,8"]


def _finished(folder: Path, rec: float, kl: float | None) -> None:
    metrics = {"rec": (rec, 0.1), "kl": (kl, None), "exact": (18.0, None), "nll_3": (rec, 0.2)}
    folder.mkdir(parents=True)
    report = {
        "card": {"k": 3},
        "metrics": {n: {"value": v, "se": se} for n, (v, se) in metrics.items()},
    }
    (folder / "eval").mkdir()
    (folder / "eval/test.json").write_text(json.dumps(report))


def test_points_are_all_combinations():
    points = sweep.points(configs.load("optimus"), AXES)
    assert [p.values for p in points] == [
        ("objective.beta.stop=0.1", "model.latent=4"),
        ("objective.beta.stop=0.1", "model.latent=8"),
        ("objective.beta.stop=1", "model.latent=4"),
        ("objective.beta.stop=1", "model.latent=8"),
    ]
    assert len({p.name for p in points}) == 4


@pytest.mark.parametrize(
    "axis, message",
    [
        ("optim.lr", "write --sweep=KEY=VALUE"),
        ("optim.lr=", "write --sweep=KEY=VALUE"),
        ("optim.rate=1", "unknown config key 'optim.rate'"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
    ],
)
def test_mistakes_are_told_before_anything_runs(axis, message):
    with pytest.raises(ConfigError, match=message):
        sweep.points(configs.load("optimus"), [axis])
    no_effect = "sweep point objective.beta.stop=0.1: .*has no effect: the posterior"
    with pytest.raises(ConfigError, match=no_effect):
        sweep.points(configs.load("sri"), ["objective.beta.stop=1,0.1"])
    with pytest.raises(ConfigError, match="optim.lr already has an axis"):
        sweep.points(configs.load("optimus"), ["optim.lr=1,2", "optim.lr=3"])
    with pytest.raises(ConfigError, match="objective.free_bits_nats already has an axis"):
        sweep.points(configs.load("optimus"), ["objective.floor=0", "objective.free_bits_nats=0"])


def test_dry_run_prints_commands_that_name_the_same_configs(capsys, tmp_path):
    words = ["--config=optimus:tiny", "--config.seed=3", f"--workdir={tmp_path / 'a b'}"]
    assert main([*words, *(f"--sweep={axis}" for axis in AXES), "--dry_run"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    points = sweep.points(configs.load("optimus"), AXES)
    assert len(lines) == 4 and not (tmp_path / "a b").exists()
    for line, point in zip(lines, points, strict=True):
        python, *argv = shlex.split(line)
        assert [python, *argv[:2]] == ["python", "-m", "jvae.main"]
        config, rest = configs.from_argv(argv[2:])
        expected = configs.apply_overrides(configs.load("optimus"), [*point.values, "seed=3"])
        assert config is not None and configs.to_json(config) == configs.to_json(expected)
        assert rest == [f"--workdir={tmp_path / 'a b' / point.name}"]
    assert main([*words, "--dry_run"]) == 2


@pytest.mark.slow
def test_a_sweep_trains_each_point_and_collects_those_that_finish(tmp_path):
    config = configs.load("optimus")
    points = sweep.points(config, AXES[:1])
    seen = []

    def train(cfg, folder):
        seen.append((cfg.objective.beta.stop, folder))
        if cfg.objective.beta.stop == 0.1:
            raise DataError("no such file")
        _finished(folder, 13.0, 6.0)

    text = sweep.run(config, points, tmp_path, train)
    assert [stop for stop, _ in seen] == [0.1, 1.0]
    assert seen[1][1] == tmp_path / "objective.beta.stop=1"
    head, _, row = text.splitlines()
    assert head.split(" | ")[:4] == ["| objective.beta.stop", "Rec", "KL", "-ELBO"]
    assert row.startswith("| 1 | 13.00 ± 0.10 | 6.00 | - | 13.00 ± 0.20 |")
    rows = json.loads((tmp_path / sweep.ROWS).read_text())
    assert [r["values"] for r in rows] == [{"objective.beta.stop": "1"}]
    assert (tmp_path / f"{sweep.FIGURE}.png").read_bytes().startswith(b"\x89PNG")
    assert "none can lie below" in (tmp_path / f"{sweep.FIGURE}.svg").read_text()


def test_a_sweep_of_which_nothing_finished_is_an_error(tmp_path):
    points = sweep.points(configs.load("optimus"), AXES[:1])
    with pytest.raises(ConfigError, match="no point of the sweep has finished"):
        sweep.collect(points, tmp_path)


def test_models_without_a_rate_get_a_table_and_no_figure(tmp_path):
    points = sweep.points(configs.load("optimus"), ["optim.lr=1"])
    _finished(tmp_path / points[0].name, 20.0, None)
    assert "| 1 | 20.00 ± 0.10 | - |" in sweep.collect(points, tmp_path)
    assert not (tmp_path / f"{sweep.FIGURE}.png").exists()
