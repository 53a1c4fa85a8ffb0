"""What a name of a model stands for, and the model that ships with the package."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae.data import grammar
from jvae.errors import WeightsError
from jvae.runs import exports, model_names

A, B = "a man is playing a guitar in a park", "two girls chased a frisbee on a beach"


def test_a_folder_comes_before_a_shipped_model(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    assert model_names.folder_of("optimus-tiny") == model_names.SHIPPED / "optimus-tiny"
    assert "model optimus-tiny: ships with jvae" in caplog.text
    Path("optimus-tiny").mkdir()
    assert model_names.folder_of("optimus-tiny") == Path("optimus-tiny")
    assert f"model optimus-tiny: the folder {tmp_path}/optimus-tiny" in caplog.text
    caplog.clear()
    assert model_names.folder_of(Path("optimus-tiny")) == Path("optimus-tiny") and not caplog.text
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_names.folder_of("~/optimus-tiny") == tmp_path / "optimus-tiny"


@pytest.mark.parametrize(
    "name, message",
    [
        ("optimus-tny", r"no folder here, no model that ships.*did you mean 'optimus-tiny'\?"),
        (
            "someone/model",
            r"someone/model: no folder here, no model that ships with jvae \(optimus-tiny\), not "
            r"in the Hugging Face cache, and the hub is not reachable",
        ),
        ("runs/", r"runs/: no folder here.*cannot be fetched from the hub"),
        ("runs/mine/again", r"no such folder; expected the folder of a run or of an export"),
        ("/nowhere", r"/nowhere: no such folder"),
        (Path("mine"), r"mine: no such folder"),
        ("~nosuchuser/x", r"cannot be a folder"),
        ("x" * 300, r"cannot be a folder"),
        ("a\0b", r"cannot be a folder"),
    ],
    ids=str,
)
def test_a_name_of_nothing_gets_one_message(name, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=message):
        jvae.load(name)


@pytest.mark.parametrize("name", model_names.shipped())
def test_shipped_models_are_small_and_of_this_version(name):
    files = [path for path in (model_names.SHIPPED / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    text = (model_names.SHIPPED / name / "config.json").read_text(encoding="utf-8")
    assert configs.schema_of(text) == configs.SCHEMA
    config = exports.load_export(model_names.SHIPPED / name).config
    assert config.name == name
    for key in ("data.train", "init.encoder", "init.decoder", "init.model"):
        assert not configs.flatten(config)[key], key  # what a stranger's machine does not have


def test_a_copy_of_a_shipped_model_is_an_export(tmp_path):
    shutil.copytree(model_names.SHIPPED / "optimus-tiny", tmp_path / "mine")
    (tmp_path / "mine/model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="is not as it was exported"):
        jvae.load(tmp_path / "mine")


@pytest.mark.slow
def test_the_first_example_of_the_readme():
    vae = jvae.load("optimus-tiny")
    assert vae.reconstruct([A, B]) == [A, B]
    z = vae.encode([A, B])
    middle = vae.decode(z[:1] + 0.5 * (z[1:] - z[:1]))
    line = vae.interpolate(A, B, 5)
    assert (line[0], line[2], line[4]) == (A, middle[0], B)
    samples = vae.sample(200, temperature=0.8)
    accepted = np.mean([grammar.parse(text) is not None for text in samples])
    assert accepted > 0.7, accepted
