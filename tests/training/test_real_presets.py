"""Presets on published weights take steps on text; see `tests/backbones/test_real_weights.py`."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.runs import metrics, start
from jvae.runs.checkpoint import FROZEN
from jvae.training import loop
from jvae.tree import named_leaves
from jvae.validation.validate import validate

WEIGHTS = Path(os.environ.get("JVAE_REAL_WEIGHTS", "")).expanduser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WEIGHTS / "smollm2-135m").is_dir(),
        reason="JVAE_REAL_WEIGHTS names no folder with the two published models",
    ),
]
PRESETS = ("optimus:smollm2", "adavae:smollm2", "della:smollm2", "sri:smollm2", "lm:pretrained")
SMALL = (
    *("data.batch_rows=2", "data.row_tokens=64", "optim.warmup_steps=0", "mesh.data=1"),
    *("train.steps=2", "train.check_every=2", "train.log_every=1", "train.tensorboard=false"),
)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_two_steps_on_real_weights(preset, tmp_path):
    flags = [*SMALL, f"data.cache={tmp_path / 'cache'}", f"init.decoder={WEIGHTS / 'smollm2-135m'}"]
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        text = tmp_path / f"{split}.txt"
        text.write_text("".join(f"{sentence.text}\n" for sentence in grammar.corpus(split, count)))
        flags.append(f"data.{split}={text}")
    config = configs.load(preset)
    if "encoder" in config.model:
        flags.append(f"init.encoder={WEIGHTS / 'minilm'}")
    if preset.startswith("sri"):
        flags += ["model.chain.steps=2", "model.chain.chains=4"]
    config = start.configure(config, flags)
    validate(config)
    done = loop.train(config, tmp_path / "run")

    lines = [line for line in metrics.read_lines(tmp_path / "run/metrics.jsonl")]
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [1, 2]
    assert all(line["train/finite"] == 1.0 and line["train/grad_norm"] > 0 for line in trained)
    params = named_leaves(done.params)
    assert params["decoder/layers/mlp/up/kernel"].dtype == jnp.bfloat16
    moved = [path for path in params if "/lora/" in path and path.endswith("/b")]
    assert bool(moved) == (not preset.startswith("adavae"))  # which has adapters of its own
    assert all(np.any(np.asarray(params[path])) for path in moved)
    assert (tmp_path / "run/ckpt" / FROZEN / "0").is_dir()
