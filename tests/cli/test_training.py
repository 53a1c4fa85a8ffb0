"""Training from Python: what it returns, callbacks, and that it is the command's own run."""

import pytest

import jvae
from jvae import config as configs
from jvae.errors import InputTypeError
from jvae.runs import workdir
from tests.cli.conftest import SMALL


def test_callbacks_are_checked_before_anything_is_read(tmp_path):
    for wrong in (print, [print, 3]):
        with pytest.raises(InputTypeError, match="expected a list of functions"):
            jvae.train("optimus:tiny", tmp_path / "run", callbacks=wrong)
    assert not (tmp_path / "run").exists()


def overrides(corpus):
    flat = configs.flatten(configs.load("optimus:tiny"))
    words = dict(word.removeprefix("--config.").split("=") for word in SMALL)
    kinds = {key: type(flat[key]) for key in words}
    values = {
        key: text == "true" if kinds[key] is bool else kinds[key](text)
        for key, text in words.items()
    }
    return values | {"data.train": (str(corpus),)}


@pytest.mark.slow
def test_a_callback_sees_every_line_and_can_stop(corpus, tmp_path):
    seen = []

    def callback(step, values):
        seen.append((step, sorted(values)))
        return "valid/neg_elbo" in values

    vae = jvae.train(
        "optimus:tiny", tmp_path / "run", overrides=overrides(corpus), callbacks=[callback]
    )
    assert [step for step, _ in seen] == [3, 4, 4]
    assert "train/lr" in seen[0][1] and "valid/mi" in seen[2][1]
    assert "last/4" in workdir.checkpoints(tmp_path / "run")
    assert vae.name == "optimus-tiny" and vae.encode(["two girls"]).shape == (1, 1, 4)


def test_a_finished_run_comes_back_as_load_gives_it(corpus, untouched, command, capsys):
    again = jvae.train("optimus:tiny", untouched, overrides=overrides(corpus))
    assert "nll_" in capsys.readouterr().err  # the table of the test split
    there = jvae.load(untouched)
    texts = ["two girls chased a frisbee on a beach"]
    assert (again.encode(texts) == there.encode(texts)).all()
