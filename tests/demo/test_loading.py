"""Which model and examples a demo has, and what its command reports."""

import importlib.util
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from jvae import config as configs
from jvae.demo import examples, state
from jvae.demo.__main__ import main
from jvae.errors import ConfigError, DataError
from tests.tools.letters import Spelt


class Writer(Spelt):
    """Samples one sentence twice, and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.model.post.sampler = None

    def sample(self, n, seed=None, sources=None, *, prior=None, label=None, **settings):
        return ["ab", "", "ab", "b"]


@pytest.fixture
def folder(tmp_path):
    """folder(run, **data): that of a run or an export with these values of the config."""

    def make(run: bool, **data):
        config, _ = configs.from_argv(["--config=optimus"])
        assert config is not None
        with config.unlocked():
            config.data.update(data)
        (tmp_path / "config.json").write_text(configs.to_json(config))
        if not run:
            (tmp_path / "SHA256SUMS").touch()
        return tmp_path

    return make


def test_examples_of_the_embedded_corpus_have_its_factors(folder, monkeypatch):
    monkeypatch.setattr(examples, "MOST", 30)
    listed = examples.read(Writer(), folder(run=False))
    assert len(listed.texts) == 30 and listed.origin == "30 test sentences"
    assert {len(values) for values in listed.labels.values()} == {30}
    assert "action" in listed.labels


def test_an_export_of_other_text_shows_samples(folder):
    listed = examples.read(Writer(), folder(run=False, train=("mine.txt",)))
    assert listed == (["ab", "b"], {}, "2 sentences sampled from the model")


def test_a_run_without_its_text_shows_samples_and_says_so(folder, caplog):
    caplog.set_level(logging.WARNING)
    listed = examples.read(Writer(), folder(run=True, train=("/nowhere/mine.txt",)))
    assert listed.texts == ["ab", "b"] and "cannot be read" in caplog.text


def test_examples_of_a_file(folder, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a b\nb\n")
    listed = examples.read(Writer(), folder(run=False), str(path))
    assert listed == (["a b", "b"], {}, "2 sentences of mine.txt")
    with pytest.raises(DataError, match="nowhere"):
        examples.read(Writer(), folder(run=False), str(tmp_path / "nowhere.txt"))


def test_a_model_with_sources_is_refused(folder, monkeypatch):
    vae = SimpleNamespace(conditional=True)
    monkeypatch.setattr(state.loading, "load", lambda *_, **__: vae)
    with pytest.raises(ConfigError, match="without a source text"):
        state.load(str(folder(run=False)))


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["optimus-tiny"]) == 2
    assert "needs gradio" in capsys.readouterr().err


def test_latents_of_examples_are_computed_once(demo, monkeypatch):
    first = demo.mean_egz
    monkeypatch.setattr(Spelt, "encode", None)
    assert demo.mean_egz is first and isinstance(first, np.ndarray)
