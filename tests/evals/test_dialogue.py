"""Several responses to a context: BLEU recall and precision, distinct words, word vectors."""

import gzip
import types

import numpy as np
import pytest
from nltk.translate import bleu_score

from jvae.errors import ConfigError, DataError
from jvae.evals import dialogue
from jvae.evals.definitions import define
from jvae.evals.settings import EvalConfig


def reference(response, target):
    """The score of Li et al. 2020, straight from NLTK."""
    smooth = bleu_score.SmoothingFunction().method7
    return bleu_score.sentence_bleu(
        [target.split()], response.split(), weights=[1 / 3] * 3, smoothing_function=smooth
    )


def test_with_one_reference_recall_is_the_maximum_and_precision_the_mean():
    responses = [
        ["i like red tea a lot", "i like tea", "no"],
        ["see you at nine then", "hello there", "ok"],
    ]
    group_targets = ["i like green tea a lot", "see you at nine"]
    actual = dialogue.bleu(responses, [[text] for text in group_targets])
    want = np.array(
        [
            [reference(r, k) for r in group]
            for group, k in zip(responses, group_targets, strict=True)
        ]
    )
    np.testing.assert_allclose(actual.recall_e, want.max(axis=1))
    np.testing.assert_allclose(actual.precision_e, want.mean(axis=1))
    recall, precision = want.max(axis=1).mean(), want.mean()
    assert actual.f1 == pytest.approx(2 * recall * precision / (recall + precision))
    assert 0 < actual.f1 < 1


def test_several_references_are_each_recalled():
    targets = [["i like tea a lot", "what is that ?"]]
    scores = dialogue.bleu([["I like tea a lot", "i like tea a lot"]], targets)
    both = dialogue.bleu([["i like tea a lot", "what is that ?"]], targets)
    itself = [reference(text, text) for text in targets[0]]
    assert scores.precision_e == pytest.approx(itself[0])  # case does not count
    assert both.precision_e == both.recall_e == pytest.approx(np.mean(itself))
    assert scores.recall_e < both.recall_e
    assert dialogue.bleu([[""]], [["a b"]]).f1 == 0


def test_distinct_words_of_one_response():
    assert dialogue.intra_dist([["a a b"], ["c", "d d"]], 1) == pytest.approx(
        (2 / 3 + 1 + 1 / 2) / 3
    )
    assert dialogue.intra_dist([["a a a"], ["c"]], 2) == pytest.approx(1 / 2)
    assert dialogue.intra_dist([["a"]], 2) is None


def test_word_vectors_by_hand():
    vectors = {"a": np.array([1.0, 0]), "b": np.array([0, 2.0]), "c": np.array([-3.0, 0])}
    actual = dialogue.embedding_scores(["a", "b", "zebra"], ["a"], vectors)
    assert actual["average"] == pytest.approx(0.5 / np.hypot(0.5, 1))
    assert actual["extrema"] == pytest.approx(1 / np.hypot(1, 2))
    assert actual["greedy"] == pytest.approx((0.5 + 1) / 2)
    # The value of the largest size keeps its sign.
    assert dialogue.embedding_scores(["a", "c"], ["a"], vectors)["extrema"] == pytest.approx(-1)
    assert set(dialogue.embedding_scores(["zebra"], ["a"], vectors).values()) == {0.0}
    best = dialogue.best_embeddings([["b", "a"]], [["c", "a"]], vectors)
    assert best["average"].tolist() == [1.0]


def test_only_the_wanted_vectors_are_read(tmp_path):
    text = "3 2\na 1 2\nb 3 4\nc 5 6\n"
    plain, packed = tmp_path / "v.txt", tmp_path / "v.txt.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        actual = dialogue.read_vectors(path, {"a", "c", "z"})
        assert {word: vector.tolist() for word, vector in actual.items()} == {
            "a": [1, 2],
            "c": [5, 6],
        }
    plain.write_text("a 1 2\nb 3\n")
    with pytest.raises(DataError, match="v.txt:2: 1 numbers, but the first line has 2"):
        dialogue.read_vectors(plain, {"a"})
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="v.txt.gz: cannot be read as word vectors"):
        dialogue.read_vectors(packed, {"a"})
    with pytest.raises(DataError, match="none.txt: cannot be read as word vectors"):
        dialogue.read_vectors(tmp_path / "none.txt", {"a"})


def test_rows_of_the_metric(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("tea 1 0\nsleep 0 1\n")
    sources, texts = ["x", "y", "x"], ["i like tea", "we sleep now", "tea for me"]
    at = types.SimpleNamespace(
        samples={
            "prior_sources": ["x", "y"],
            "outputs": ["i like tea", "tea", "we sleep now", "we sleep"],
        },
        data=types.SimpleNamespace(lines=types.SimpleNamespace(source=sources, text=texts)),
        config=EvalConfig(outputs=2, vectors=str(path)),
    )
    rows = {row.name: row for row in dialogue.dialogue(at)}
    assert all(map(define, rows))
    assert rows["dialogue_bleu_f1"].value > 0.3 > rows["dialogue_bleu_f1"].baseline
    assert rows["dialogue_greedy"].value == 1 and rows["dialogue_greedy"].baseline == 0
    assert rows["dialogue_length"].value == 9 / 4
    assert rows["dialogue_bleu_recall"].note == "2 contexts, 2 responses each"
    del at.samples["outputs"]
    with pytest.raises(ConfigError, match="the model reads no source, such as a context"):
        dialogue.dialogue(at)
