"""The command that compares latents of one and of several vectors by length of text."""

import json
import shlex

import pytest

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.experiments import vectors
from jvae.validation.validate import validate


def test_rows_have_equal_numbers_in_all_or_equal_width():
    names = [point.name for point in vectors.points([1, 8])]
    assert names == ["1x32-plain", "1x32", "8x4", "8x32"]
    with pytest.raises(ConfigError, match="--vectors=3: expected a divisor of 32"):
        vectors.points([3])


def test_texts_are_as_long_as_asked_and_the_same_every_time():
    texts = vectors.texts("valid", 60)
    words = [len(text.split()) for text in texts]
    assert vectors.SHORTEST <= min(words) < 20 and 50 < max(words) <= vectors.LONGEST
    assert len(set(texts)) == 60 and texts == vectors.texts("valid", 60)
    assert not set(texts) & set(vectors.texts("test", 60))


def test_commands_are_configs_that_pass(capsys):
    assert vectors.main(["--vectors=8", "--set=train.steps=50", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    config, rest = configs.from_argv(shlex.split(lines[1])[3:])
    assert config is not None and rest == ["--workdir=runs/vectors/8x4"]
    assert (config.model.vectors, config.model.latent, config.train.steps) == (8, 4, 50)
    config = configs.apply_overrides(config, ["train.check_every=50", "optim.warmup_steps=5"])
    validate(config)
    assert vectors.main(["--vectors=8", "--set=model.vector=2", "--dry_run"]) == 2
    assert "did you mean 'model.vectors'" in capsys.readouterr().err


def test_the_table_has_a_column_for_each_bucket(tmp_path):
    done = vectors.points([8])
    for i, point in enumerate(done):
        report = {
            "metrics": {"exact_match": {"value": 50.0 + i}},
            "details": {
                "by_length": {
                    "words_from": [0, 21],
                    "words_to": [20, 60],
                    "exact_match_by_length": [90.0 + i, None],
                }
            },
        }
        (tmp_path / point.name / "eval").mkdir(parents=True)
        (tmp_path / point.name / "eval/test.json").write_text(json.dumps(report))
    lines = vectors.table([(point, tmp_path / point.name) for point in done]).splitlines()
    assert lines[1].split() == [
        "latent",
        "0",
        "to",
        "20",
        "words",
        "21",
        "to",
        "60",
        "words",
        "all",
    ]
    assert lines[3].split() == ["8x4", "91.0", "-", "51.0"]
