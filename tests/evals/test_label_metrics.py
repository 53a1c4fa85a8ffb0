"""Scores of generation and transfer by label, on texts whose words give the label away."""

import gzip

import numpy as np
import pytest

from jvae.errors import DataError
from jvae.evals import label_metrics as metrics

GOOD = ["the food was great", "a great friendly place", "i love the great staff"] * 10
BAD = ["the food was awful", "an awful rude place", "i hate the awful staff"] * 10


@pytest.fixture(scope="module")
def oracle():
    return metrics.Oracle(GOOD + BAD, ["good"] * 30 + ["bad"] * 30)


def test_accuracy_is_a_mean_over_labels(oracle):
    texts = ["great food", "great staff", "awful staff", "awful staff"]
    actual = oracle.accuracy(texts, ["good", "good", "good", "bad"])
    assert actual.by_label == {"bad": 100.0, "good": pytest.approx(200 / 3)}
    assert actual.mean == pytest.approx(500 / 6)
    # Binomial: p (1 - p) / n of the label that has errors, over both labels.
    assert actual.se == pytest.approx(100 * np.sqrt(2 / 9 / 3 / 4))


def test_scores_of_generated_texts(oracle):
    texts = ["the food was great", "the food was great", "a rude awful place", "great place to eat"]
    actual = metrics.generation(oracle, texts, ["good", "good", "bad", "bad"], GOOD + BAD)
    assert actual.accuracy == pytest.approx(75.0) and actual.distinct == 75.0
    assert 0 < actual.bleu < 100 and actual.self_bleu and actual.dist_2
    assert actual.g == pytest.approx(np.sqrt(actual.accuracy * actual.bleu))
    real = metrics.generation(oracle, GOOD[:2] + BAD[:2], ["good"] * 2 + ["bad"] * 2, GOOD + BAD)
    assert real.accuracy == 100 and real.bleu == pytest.approx(100.0)
    alone = GOOD[:1] + BAD[:1] + ["nothing of this is anywhere else"]
    lonely = metrics.generation(oracle, alone[2:], ["good"], alone, members=True)
    assert lonely.bleu < 20  # not against itself


def test_scores_of_transfer(oracle):
    sources = ["the food was great", "an awful rude place"]
    texts, goals = ["the food was awful", "an awful rude place"], ["bad", "good"]
    actual = metrics.transfer(oracle, texts, goals, sources)
    assert actual.accuracy == 50.0 and actual.exact == 50.0 and actual.reference_bleu is None
    assert 0 < actual.source_bleu < 100
    references = [["the food was awful"], ["a friendly place", "an awful rude place"]]
    assert metrics.transfer(
        oracle, texts, goals, sources, references
    ).reference_bleu == pytest.approx(100)


def test_references_come_as_columns(tmp_path):
    path = tmp_path / "references.tsv.gz"
    lines = "bad\tawful food\tgreat food\tlovely food\ngood\ta nice place\ta bad place\n"
    path.write_bytes(gzip.compress(lines.encode()))
    actual = metrics.read_references(str(path), ("bad", "good"))
    assert actual.texts == ["awful food", "a nice place"] and actual.label_n == ["bad", "good"]
    assert actual.references == [["great food", "lovely food"], ["a bad place"]]


@pytest.mark.parametrize(
    "line, message",
    [
        ("bad\tawful food", "references.tsv:1: 2 columns; expected label<TAB>sentence<TAB>ref"),
        ("worse\tawful food\tfood", "1: unknown label 'worse'; known: bad, good"),
        ("bad\t\tfood", "references.tsv:1: empty"),
    ],
)
def test_lines_that_are_no_references(line, message, tmp_path):
    path = tmp_path / "references.tsv"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        metrics.read_references(str(path), ("bad", "good"))
