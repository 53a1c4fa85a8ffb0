"""Tasks of language understanding on a finished run."""

import json

import numpy as np
import pytest

from jvae.cli.main import main
from jvae.data import grammar

pytestmark = pytest.mark.slow  # tests/evals/test_nlu.py has the fast ones


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sentences and their next ones; the label is whether the first has its first factor at 0."""
    folder = tmp_path_factory.mktemp("task")
    for split, count in (("train", 120), ("valid", 40)):
        sentences = grammar.corpus(split, count + 1)
        rows = [
            f"{int(sentences[i].factors[0] == 0)}\t{sentences[i].text}\t{sentences[i + 1].text}\n"
            for i in range(count)
        ]
        (folder / f"{split}.tsv").write_text("".join(rows))
    return folder


def call(finished, *words):
    return main([f"--workdir={finished}", "--mode=finetune", *words])


@pytest.mark.parametrize("features", ["pooled", "mean"])
def test_a_frozen_encoder_under_few_labels(finished, pairs, features, capsys):
    words = ("--task=glue/rte", f"--finetune.data={pairs}", f"--finetune.features={features}")
    assert call(finished, *words, "--finetune.per_class=2,500", "--finetune.draws=3") == 0
    assert "nlu_accuracy_each_2" in capsys.readouterr().out
    report = json.loads((finished / f"eval/finetune.rte.{features}-frozen-few.json").read_text())
    rows = report["metrics"]
    assert set(rows) == {
        f"nlu_{name}_each_2" for name in ("accuracy", "macro_f1", "f1", "matthews")
    }
    row = rows["nlu_accuracy_each_2"]
    assert 0 <= row["value"] <= 100 and row["se"] is not None and row["baseline"] is not None
    assert row["note"].startswith("3 draws, their sd; most frequent ")
    assert report["notes"][0].startswith("500 of each class are left out: the most frequent label")
    assert [file["lines"] for file in report["card"]["data"]] == [120, 40]
    assert report["card"]["sentences"] == 40


@pytest.mark.slow
def test_the_encoder_trains_with_its_head(finished, pairs):
    words = ("--task=rte", f"--finetune.data={pairs}", "--finetune.freeze=false")
    assert call(finished, *words, "--finetune.epochs=30", "--finetune.lr=1e-2") == 0
    report = json.loads((finished / "eval/finetune.rte.pooled-tuned.json").read_text())
    assert np.isfinite(report["metrics"]["nlu_accuracy"]["value"])
    assert report["metrics"]["nlu_accuracy"]["value"] > 70
    words += ("--finetune.trainable=^encoder/", "--finetune.epochs=1")
    assert call(finished, *words) == 0
    assert (finished / "eval/finetune.rte.pooled-part.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--mode=finetune",),
            "which task? Add --task=sst2, rte, mrpc, wnli or another GLUE task",
        ),
        (("--mode=eval", "--task=rte"), "--task and --finetune.KEY apply only to --mode=finetune"),
        (("--mode=finetune", "--task=rt"), "--task=rt: expected one of cola, sst2"),
        (
            ("--mode=finetune", "--task=rte", "--finetune.freez=1"),
            "--finetune.freez: no such option; did you mean 'freeze'?; options: data, features",
        ),
        (
            ("--mode=finetune", "--task=rte", "--finetune.per_class=0,5"),
            "--finetune.per_class=0,5: expected a tuple, each an integer of at least 1",
        ),
    ],
)
def test_mistakes(finished, words, message, capsys):
    assert main([f"--workdir={finished}", *words]) == 2
    assert message in capsys.readouterr().err
