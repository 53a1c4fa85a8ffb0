"""What the trackers of a run get; Weights & Biases is a stand-in."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae import extras
from jvae.runs import metrics, trackers


@pytest.fixture
def wandb(monkeypatch):
    """A module that notes what is asked of it: `logged` and `begun`."""
    module = SimpleNamespace(logged=[], begun=[], axes=[], finished=0)

    def init(**words):
        module.begun.append(words)
        return SimpleNamespace(
            log=lambda values: module.logged.append(values),
            define_metric=lambda name, step_metric=None: module.axes.append((name, step_metric)),
            finish=lambda: setattr(module, "finished", module.finished + 1),
        )

    module.init, module.Histogram = init, lambda values: ("histogram", values.tolist())
    module.Table = lambda columns, data: ("table", [row[0] for row in data])
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_the_run(wandb, tmp_path):
    config = ConfigDict(
        {"train": {"tensorboard": False, "wandb": "texts"}, "optim": {"lr": 0.1}, "name": "mine"}
    )
    for _ in range(2):  # a resumed run is the same one
        with metrics.Writer(tmp_path, stream=io.StringIO(), config=config) as writer:
            writer.write(1, {"train/loss": 2.5, "train/bad": float("nan"), "train/lr": 0.1})
            writer.spread(1, "valid/kl_of_dimensions", np.array([[1.0, 0.5]]))
    assert wandb.logged[:2] == [
        {"step": 1, "train/loss": 2.5, "train/lr": 0.1},
        {"step": 1, "valid/kl_of_dimensions": ("histogram", [1.0, 0.5])},
    ]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/prior.txt").write_text("".join(f"line {i}\n" for i in range(30)))
    trackers.finish(tmp_path, 0, config, {"test/nll_100": 9.0})
    # The step of the best checkpoint is below the last one logged; W&B must not drop it.
    numbers, texts = wandb.logged[-2:]
    assert numbers == {"step": 0, "test/nll_100": 9.0} and wandb.axes[-1] == ("*", "step")
    assert texts["samples/prior"] == ("table", [f"line {i}" for i in range(trackers.SHOWN)])
    assert wandb.finished == 3 and len({words["id"] for words in wandb.begun}) == 1
    first = wandb.begun[0]
    assert (first["project"], first["name"]) == ("texts", tmp_path.name)
    assert first["config"]["optim.lr"] == 0.1


def test_tensorboard_gets_histograms_and_texts(tmp_path):
    pytest.importorskip("tensorboardX")
    config = ConfigDict({"train": {"tensorboard": True, "wandb": ""}})
    with metrics.Writer(tmp_path, stream=io.StringIO(), config=config) as writer:
        writer.spread(1, "valid/kl_of_dimensions", np.ones((1, 4)))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/prior.txt").write_text("two girls\n")
    trackers.finish(tmp_path, 7, config, {"test/nll_100": 9.0})
    data = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    for name in (b"valid/kl_of_dimensions", b"samples/prior", b"two girls", b"test/nll_100"):
        assert name in data


def test_only_training_hides_what_tensorboard_showed_after_a_step(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboardX")
    steps = []
    writer = SimpleNamespace(add_scalar=lambda *words: None, close=lambda: None)

    def opened(folder, purge_step, filename_suffix):
        steps.append(purge_step)
        return writer

    monkeypatch.setattr(tensorboard, "SummaryWriter", opened)
    config = ConfigDict({"train": {"tensorboard": True, "wandb": ""}})
    trackers.opened(tmp_path, 0, config)
    (tmp_path / "tensorboard").mkdir()
    trackers.opened(tmp_path, 1_000, config)
    trackers.finish(tmp_path, 1_000, config, {"test/nll_100": 9.0})  # step of the best checkpoint
    assert steps == [None, 1_001, None]


def test_a_missing_package_is_named_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = extras.missing("wandb", "train.wandb=texts")
    assert message and message.endswith("pip install -e '.[wandb]'")


def test_tensorboardx_does_not_bring_pytorch(tmp_path):
    """Where that is installed, importing it takes seconds at the start of every run."""
    pytest.importorskip("tensorboardX")
    (tmp_path / "torch.py").write_text("Tensor = object\n")
    program = (
        "import sys; from pathlib import Path; from jvae.runs import trackers\n"
        f"trackers.TensorBoard(Path({str(tmp_path / 'events')!r}), None).write(1, {{'a': 1.0}})\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": path}
    )
