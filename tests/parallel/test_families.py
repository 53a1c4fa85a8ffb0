"""Shipped configs of every system, made small: one curve on one device and on a product of axes,
through phases, frozen parameters, samplers and their optimizers.
"""

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae import models
from jvae.data import grammar
from jvae.parallel import mesh as meshes
from jvae.runs import metrics
from jvae.training.loop import train
from jvae.tree import named_leaves

STACK = ("layers=2", "width=16", "mlp=32", "heads=2")
POSITIONS = "model.decoder.positions=128"
SMALL = (
    "optim.warmup_steps=1",
    "train.steps=8",
    "train.check_every=4",
    "train.log_every=1",
    "train.tensorboard=false",
)
PACKED = ("data.row_tokens=32", "data.batch_rows=8", "data.vocab=300")
DECODER = tuple(f"model.decoder.{value}" for value in STACK)
ENCODER = tuple(f"model.encoder.{value}" for value in STACK)
LSTM = ("model.decoder.width=8", "model.decoder.hidden=16", "data.batch_rows=8")
CASES = {
    "adavae:tiny": (*DECODER, *PACKED, POSITIONS, "model.adapter=4", "model.latent=4"),
    "della:tiny": (*DECODER, *PACKED, POSITIONS, "model.latent=4"),
    "lm:lstm": LSTM,
    "lm:tiny": (*DECODER, *PACKED),
    "lstm_vae:annealed": (*LSTM, "model.encoder.width=8", "model.encoder.hidden=16"),
    "optimus:tiny": (*DECODER, *ENCODER, *PACKED, "model.latent=4"),
    "sri:tiny": (*LSTM, "model.chain.steps=2", "model.latent=4"),
    "sri:transformer": (*DECODER, "data.batch_rows=8", "model.chain.steps=2", "model.latent=4"),
    "t5_vae:tiny": (*DECODER, *PACKED, "model.decoder.head=8", "model.latent=4"),
}


def small(case: str, *more: str):
    """The config of a case."""
    config, _ = configs.from_argv(
        [f"--config={case}", *(f"--config.{value}" for value in (*SMALL, *CASES[case], *more))]
    )
    assert config is not None
    return config


def test_every_family_has_a_case():
    families = {configs.load(case).model.family for case in CASES}
    assert families == set(models.FAMILIES)


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("case", CASES)
def test_one_curve_on_a_product_of_axes(case, tmp_path):
    """Losses and gradient norms of every step, and validation, to 1e-5."""
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 200)))
    curves, params = {}, {}
    for name, mesh in {"one": (1, 1, 1), "all": (2, 2, 2)}.items():
        sizes = [f"mesh.{axis}={n}" for axis, n in zip(meshes.AXES, mesh, strict=True)]
        done = train(small(case, f"data.train={text}", *sizes), tmp_path / name)
        params[name] = jax.device_get(done.params)
        curves[name] = [
            {key: value for key, value in line.items() if "/time/" not in key}
            for line in metrics.read_lines(tmp_path / name / "metrics.jsonl")
        ]
    for got, want in zip(curves["all"], curves["one"], strict=True):
        assert got.keys() == want.keys()
        for key, value in want.items():
            # Mutual information is a small difference of densities of several nats.
            least = 1e-6 if key == "valid/mi" else 1e-7
            assert got[key] == pytest.approx(value, rel=1e-5, abs=least), (want["step"], key)
    for (path, got), want in zip(
        named_leaves(params["all"]).items(), jax.tree.leaves(params["one"]), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=path)
