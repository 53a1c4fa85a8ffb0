"""From two folders to a trained model by one command, and on without them."""

import json
import logging
import shutil

import pytest

import jvae
from jvae.cli.main import main
from tests.training.test_init_params import Place

SHORT = (
    *("mesh.data=1", "data.row_tokens=32", "data.batch_rows=4"),
    *("train.check_every=2", "train.log_every=2", "train.tensorboard=false"),
    *("evals.samples=2", "evals.sentences=4", "evals.generate=4", "evals.interpolations=1"),
    *("model.encoder.dtype=float32", "model.decoder.dtype=float32"),
)


@pytest.mark.slow
def test_two_folders_and_a_text_are_enough(tmp_path, caplog, capsys):
    corpus = tmp_path / "mine.txt"
    nouns = ("cat", "dog", "hill", "mat", "green")
    corpus.write_text("".join(f"{a} {b}\n" for a in ("the", "a", "on") for b in nouns) * 4)
    place = Place(tmp_path)
    config = json.loads((place.bert / "config.json").read_text())
    pooling = place.bert / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (place.bert / "modules.json").write_text('[{"type": "a.Pooling", "path": "1_Pooling"}]')
    words = ["--config=optimus:base", f"--workdir={tmp_path / 'run'}"]
    words += [f"--config.init.encoder={place.bert}", f"--config.init.decoder={place.gpt2}"]
    words += [f"--config.data.train={corpus}", *(f"--config.{value}" for value in SHORT)]

    assert main([*words, "--config.train.steps=2", "--config.model.encoder.layers=9"]) == 2
    assert f"layers=9, init.encoder={place.bert} has 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.INFO):
        assert main([*words, "--config.train.steps=2"]) == 0
    said = caplog.text
    assert f"model.encoder is the bert of {place.bert}: layers 2" in said
    assert "model.pool is mean and not cls" in said
    assert "decoder tokenizer" in said and "<BOS> begins a text, <EOS> ends it" in said
    assert "3 new vocabulary rows, set to the mean of all rows" in said
    assert "prefix 'transformer.'" in said and "compiling the training step" in said

    for folder in (place.bert, place.gpt2):
        shutil.rmtree(folder)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert main([*words, "--config.train.steps=4"]) == 0
    assert "resumed at step 2 of 4" in caplog.text
    vae = jvae.load(tmp_path / "run")
    assert vae.encode(["the cat sat on the mat"]).shape == (1, 1, 32)
    jvae.export_backbone(tmp_path / "run", tmp_path / "out", "encoder")
    back = json.loads((tmp_path / "out/config.json").read_text())
    assert back["hidden_size"] == config["hidden_size"]
