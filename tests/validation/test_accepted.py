"""Values that the check takes really train and evaluate."""

import random
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jvae import config as configs
from jvae.cli import commands
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.validation.validate import validate

SHAPES = (
    "adavae:tiny",
    "della:tiny",
    "lm:lstm",
    "lstm_vae:tiny",
    "optimus:tiny",
    "sri:tiny",
    "t5_vae:tiny",
)
SMALL = dict(layers=1, width=8, heads=2, head=4, mlp=8, hidden=8, positions=64, encoder_layers=1)
RUN = dict(
    train=dict(steps=20, log_every=1, check_every=20, tensorboard=False),
    data=dict(batch_rows=8, tokenizer_kind="word", vocab=0),
    evals=dict(samples=1, sentences=2, generate=2),
    mesh=dict(data=1),
)


def small(name: str, text: Path) -> ConfigDict:
    """A run of twenty updates on a few lines."""
    config = configs.load(name).unlock()
    for part in (config.model, *config.model.values()):
        if isinstance(part, ConfigDict):
            part.update({key: value for key, value in SMALL.items() if key in part})
            if "layers" in part:
                part.unroll = 1
    for section, values in RUN.items():
        config[section].update(values)
    config.data.train = (str(text),)
    return config


def accepted(name: str, text: Path, rng: random.Random) -> tuple[str, float]:
    """A number of the config and a value near the edge of its range that passes the check."""
    config = small(name, text)
    validate(config)  # else no value would pass
    flat = configs.flatten(config)
    keys = [k for k, v in flat.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    while True:
        key = rng.choice(keys)
        value = rng.choice((0, -1, 1, 2, 1e-3, 0.999))
        if isinstance(flat[key], int) and not isinstance(value, int):
            continue
        try:
            validate(changed(name, text, key, value))
        except ConfigError:
            continue
        return key, value


def changed(name: str, text: Path, key: str, value: float) -> ConfigDict:
    tree = small(name, text).to_dict()
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[last] = value
    return ConfigDict(tree).lock()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(14))
def test_accepted_values_train_and_evaluate(seed, tmp_path, capsys):
    rng, name = random.Random(seed), SHAPES[seed % len(SHAPES)]
    text = tmp_path / "train.txt"
    text.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 120)))
    key, value = accepted(name, text, rng)
    print(name, key, value)
    commands.train(changed(name, text, key, value), tmp_path / "run")
    assert "rec" in capsys.readouterr().out.lower()
    assert (tmp_path / "run" / "eval" / "test.json").is_file()
