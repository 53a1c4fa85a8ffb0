"""Several updates in one call: the same run, with fewer lines."""

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.metrics import read_lines
from jvae.training import loop

NARROW = ("layers=1", "width=8", "heads=2", "mlp=8", "positions=32")


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"{sentence.text}\n" for sentence in grammar.corpus("train", 200)))
    words = [f"model.{side}.{value}" for side in ("encoder", "decoder") for value in NARROW]
    words += ["model.latent=2", "data.row_tokens=32", "data.batch_rows=4", "optim.warmup_steps=1"]
    words += [f"data.train={text}", f"data.cache={tmp_path / 'cache'}", "mesh.data=2"]
    words += ["train.steps=12", "train.check_every=6", "train.log_every=3"]
    return configs.apply_overrides(configs.load("optimus"), [*words, "train.tensorboard=false"])


@pytest.mark.slow
@pytest.mark.multidevice
def test_calls_of_three_are_the_run_of_single_steps(config, tmp_path):
    actual = {}
    for together in (1, 3):
        folder = tmp_path / f"run-{together}"
        changed = configs.apply_overrides(config, [f"train.steps_per_call={together}"])
        loop.train(changed, folder)
        with Checkpoints(folder, read_only=True) as ckpts:
            arrays, meta = ckpts.arrays()
        lines = [
            {name: v for name, v in line.items() if "/time/" not in name}
            for line in read_lines(folder / "metrics.jsonl")
        ]
        actual[together] = lines, arrays, meta["position"]
    (one, one_arrays, one_at), (three, three_arrays, three_at) = actual[1], actual[3]
    assert one_at == three_at and [a["step"] for a in one] == [a["step"] for a in three]
    for a, b in zip(one, three, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5, atol=1e-6)
    for name, a in one_arrays.items():
        np.testing.assert_allclose(
            jax.device_get(a), three_arrays[name], rtol=1e-4, atol=1e-6, err_msg=name
        )
