"""Seeded mistakes in configs, checked in this process.

A config with random values, sections and keys must be accepted or refused by one ConfigError that
names a changed key. An accepted one must stay what it is through JSON, as checkpoints keep it.
"""

import random
from collections import Counter
from typing import Any

from ml_collections import ConfigDict

from jvae import config as configs
from jvae.errors import ConfigError
from jvae.validation.validate import validate
from tests.tools.fuzz import Failure, deadline

SPECS = ("optimus", "t5_vae", "adavae", "della", "sri", "sri:transformer", "lstm_vae", "lm")
SECONDS = 60  # that no case may take
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 10**12, 2**70),
    *(float("nan"), float("inf"), -0.5, 0.5, 1.5, 1e300),
    *("", "x", "float99", "(", "\ud83d", (), (1,), ("(",), (None,)),
)


def fuzz_configs(seed: int, n: int) -> Counter[str]:
    """Validates n configs with one to three mistakes each. Returns: how the cases ended.

    Raises: Failure for another exception, a message that names no changed key, or a config that
      JSON changes.
    """
    rng, tally = random.Random(f"configs {seed}"), Counter()
    bases = {spec: configs.load(spec) for spec in SPECS}
    for case in range(n):
        spec = rng.choice(SPECS)
        tree = bases[spec].to_dict()
        keys = [_mistake(rng, tree) for _ in range(rng.randint(1, 3))]
        config = ConfigDict(tree)
        name = f"case {case} of seed {seed}: {spec} with {', '.join(keys)}"
        try:
            with deadline(SECONDS):
                validate(config)
        except ConfigError as error:
            words = [key.split("=")[0] for key in keys]
            # A rule may name the other key of a pair, or the section that no longer is one.
            if not any(word.rpartition(".")[2] in str(error) for word in words) and not any(
                word.split(".")[0] in str(error) for word in words
            ):
                raise Failure(f"{name}: the message names no changed key: {error}") from None
            tally["refused"] += 1
        except Exception as error:
            raise Failure(f"{name}: {type(error).__name__}: {error}") from error
        else:
            again = configs.from_json(configs.to_json(config))
            if difference := configs.diff(config, again):
                raise Failure(f"{name}: JSON changes {difference}")
            tally["accepted"] += 1
    return tally


def _mistake(rng: random.Random, tree: dict[str, Any]) -> str:
    """Changes one value, removes one, adds one, or puts a value in place of a section."""
    path: list[str] = []
    section: Any = tree
    while True:
        name = rng.choice(sorted(section))
        path.append(name)
        if not isinstance(section[name], dict) or not section[name] or rng.random() < 0.02:
            break
        section = section[name]
    key, kind = ".".join(path), rng.random()
    if kind < 0.05 and len(section) > 1:
        del section[name]
        return key
    if kind < 0.1:
        section[f"{name}x"] = 1
        return f"{key}x"
    section[name] = value = rng.choice(VALUES)
    return f"{key}={value!r}"
