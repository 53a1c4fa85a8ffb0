"""The command that compares latents of one and of several vectors by length of text."""

import json
import shlex

import pytest

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.experiments import results, vectors, vectors_table
from jvae.validation.validate import validate
from tests.experiments.test_results import finished_run


def test_rows_have_equal_numbers_in_all_or_equal_width():
    names = [point.name for point in vectors.points([1, 8])]
    assert names == ["1x32-plain", "1x32", "8x4", "8x32"]
    with pytest.raises(ConfigError, match="--vectors=3: expected a divisor of 32"):
        vectors.points([3])


def test_texts_are_as_long_as_asked_and_the_same_every_time():
    texts = vectors.texts("valid", 60)
    words = [len(text.split()) for text in texts]
    assert vectors.SHORTEST <= min(words) < 10 and 25 < max(words) <= vectors.LONGEST
    assert len(set(texts)) == 60 and texts == vectors.texts("valid", 60)
    assert not set(texts) & set(vectors.texts("test", 60))


def test_commands_are_configs_that_pass(capsys):
    assert vectors.main(["--vectors=8", "--set=train.steps=50", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    config, rest = configs.from_argv(shlex.split(lines[0])[3:])
    assert config is not None and rest == ["--workdir=runs/vectors/8x4"]
    assert (config.model.vectors, config.model.latent, config.train.steps) == (8, 4, 50)
    config = configs.apply_overrides(config, ["train.check_every=50", "optim.warmup_steps=5"])
    validate(config)
    assert vectors.main(["--vectors=8", "--set=model.vector=2", "--dry_run"]) == 2
    assert "did you mean 'model.vectors'" in capsys.readouterr().err


def test_rows_of_finished_runs_fill_the_table(tmp_path):
    rows = tmp_path / "rows.jsonl"
    for i, point in enumerate(vectors.points([8])):
        folder = finished_run(tmp_path / point.name, "optimus-tiny")
        path = folder / "eval/test.json"
        report = json.loads(path.read_text())
        report["details"]["by_length"] = {
            "words_from": [0, 21],
            "words_to": [20, 60],
            "exact_match_by_length": [90.0 + i, None],
        }
        for name, value in (("exact_match", 50.0 + i), ("rec", 20.25), ("kl", 11.5)):
            report["metrics"][name] = {"value": value, "se": None, "note": ""}
        path.write_text(json.dumps(report))
        step = vectors.step(point, tmp_path, tmp_path, ())
        results.replace(rows, [vectors.row_of(point, step, folder)], vectors_table.key)
    lines = vectors_table.table(results.read_rows(rows)).splitlines()
    assert "| exact match %, 0 to 20 words | exact match %, 21 to 60 words | all |" in lines[0]
    assert "| 8x4 | 90.0 | – | 50.0 | 20.25 | 11.50 |" in lines
    assert "| 8x32 | 91.0 | – | 51.0 | 20.25 | 11.50 |" in lines
    assert f"| 1x32, mean pooling |{' not measured |' * 5}" in lines
    assert lines[-1].startswith("- 8x32: `python -m jvae.main --config=optimus:tiny ")
