"""What `--config=auto` chooses: by facts alone, and for files through the config that comes out."""

import logging

import numpy as np
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.runs import own_text, start
from jvae.runs.own_text import Facts
from jvae.validation.validate import validate

CAPTIONS = Facts(
    lines=5_000,
    mean=11,
    longest=40,
    most=23,
    words=55_000,
    different=3_000,
    once=0.5,
    tokens=15,
    most_tokens=60,
)


def config_of(choice: own_text.Choice):
    flags = [f"{key}={start._as_text(value)}" for key, value in choice.values.items()]
    more = ["data.train=x.txt", *(["data.source=0"] if "della" in choice.preset else [])]
    return configs.apply_overrides(configs.load(choice.preset), [*flags, *more])


@pytest.mark.parametrize("lines", [30, 5_000, 1_000_000])
@pytest.mark.parametrize("words", [(3, 5, 9), (11, 23, 40), (60, 90, 100), (200, 900, 20_000)])
@pytest.mark.parametrize("source", [False, True])
def test_every_choice_is_a_config_that_passes(lines, words, source):
    mean, most, longest = words
    if source and longest > own_text.LONG:
        pytest.skip("pairs cannot be cut into sentences")
    tokens = dict(tokens=1.4 * mean, most_tokens=2 * longest)
    facts = Facts(lines, mean, longest, most, lines * mean, lines, 0.5, **tokens, source=source)
    choice = own_text.choose(facts)
    validate(config_of(choice), platform="cpu")
    assert 5 <= len(choice.reasons) <= 10


def test_choices_follow_the_corpus():
    few, many = (own_text.choose(CAPTIONS._replace(lines=n, words=11 * n)) for n in (1_000, 40_000))
    assert few.values["data.vocab"] == 440 and many.values["data.vocab"] == 8_000
    assert few.values["model.decoder.dropout"] > many.values["model.decoder.dropout"]
    assert few.values["model.decoder.width"] < many.values["model.decoder.width"]
    assert few.values["train.steps"] < many.values["train.steps"]
    assert "--config=optimus:smollm2" in few.reasons[1] and "smollm2" not in many.reasons[1]
    stories = own_text.choose(CAPTIONS._replace(mean=80, most=300, longest=900))
    assert stories.values["data.sentences"] is True
    assert stories.values["data.max_words"] == own_text.LONG
    pairs = own_text.choose(CAPTIONS._replace(source=True))
    assert pairs.preset == "della:tiny" and pairs.values["model.conditional"] is True


def test_a_file_gets_its_config_and_the_log_says_why(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 400)))
    flags = [f"data.train={path}", "model.latent=16", "data.vocab=300", "train.steps=200"]
    config = start.configure(configs.load("auto"), flags, tmp_path / "run")
    assert (config.model.latent, config.data.vocab, config.name) == (16, 300, "auto")
    assert config.data.train == (str(path),) and config.model.decoder.dropout == 0.3
    assert (config.train.steps, config.train.check_every) == (200, 25)
    assert config.optim.warmup_steps == 10
    validate(config, platform="cpu")
    assert "auto: text: 400 lines of 1" in caplog.text
    assert "auto: as you set: data.vocab=300, train.steps=200" in caplog.text
    again = start.configure(configs.load("auto"), flags, tmp_path / "run")
    assert configs.diff(config, again) == {}


def test_the_text_is_prepared_in_the_configured_cache(tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 40)))
    (tmp_path / "full").write_text("")  # not a folder: nothing can be written there
    monkeypatch.setenv("JVAE_CACHE", str(tmp_path / "full"))
    flags = [f"data.train={path}", f"data.cache={tmp_path}/cache"]
    facts = own_text.read(configs.apply_overrides(configs.load("auto"), flags).data)
    assert facts.lines == 40 and any((tmp_path / "cache").iterdir())


def test_text_without_spaces_gets_positions_for_its_tokens(tmp_path):
    path = tmp_path / "zh.txt"
    # Many different characters of 3 bytes, 15 to 40 per line: BPE finds little to merge.
    rng = np.random.default_rng(0)
    lines = ["".join(chr(0x4E00 + 7 * i) for i in rng.integers(0, 2_000, n)) for n in range(15, 41)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    config = configs.apply_overrides(configs.load("auto"), [f"data.train={path}"])
    facts = own_text.read(config.data)
    assert (facts.longest, facts.lines) == (20, 26)  # 120 bytes
    assert 64 < facts.most_tokens <= 120
    assert own_text.choose(facts).values["model.decoder.positions"] in (128, 256)


def test_the_stated_number_of_texts_per_update_counts_tokens():
    choice = own_text.choose(CAPTIONS._replace(lines=1_000, words=11_000, tokens=26.0))
    rows, row = choice.values["data.batch_rows"], choice.values["data.row_tokens"]
    (line,) = (reason for reason in choice.reasons if "texts per update" in reason)
    assert f"about {rows * row / 28:.0f} texts per update" in line


def test_without_text_there_is_nothing_to_choose_by():
    with pytest.raises(ConfigError, match="add --config.data.train=FILE"):
        start.configure(configs.load("auto"), [])
