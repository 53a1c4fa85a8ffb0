"""Scores of texts against the references of their own sources, and their diversity."""

import sys
import types

import numpy as np
import pytest

from jvae.errors import ConfigError
from jvae.evals import references, source_text, text
from jvae.evals.card import Card, Report
from jvae.evals.settings import PRESETS, EvalConfig

sacrebleu = pytest.importorskip("sacrebleu")
WORDS = ["a", "man", "the", "red", "dogs", "runs", "running", ",", "quickly", ".", "two", "it's"]


def lines(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, longest))) for _ in range(count)]


def test_pairs_of_one_source_are_its_references():
    actual = references.groups(["s", "t", "s", "s"], ["a", "b", "c", "a"])
    assert actual == [("s", ["a", "c"]), ("t", ["b"])]
    assert references.by_source(["a", "b", "c", "d"], 2) == [["a", "b"], ["c", "d"]]


def test_corpus_bleu_of_several_references_is_that_of_sacrebleu():
    decoded, first, second = lines(20, 1), lines(20, 2), lines(20, 3)
    both = [list(pair) for pair in zip(first, second, strict=True)]
    metric = sacrebleu.BLEU()
    score, signature = text.corpus_bleu_of(both, decoded)
    assert score == metric.corpus_score(decoded, [first, second]).score > 0
    assert signature == str(metric.get_signature())
    # Without the second reference of half of the lines.
    fewer = [pair[: 1 + i % 2] for i, pair in enumerate(both)]
    second = [line if i % 2 else None for i, line in enumerate(second)]
    score, signature = text.corpus_bleu_of(fewer, decoded)
    assert score == metric.corpus_score(decoded, [first, second]).score
    assert signature.startswith("nrefs:var|")


def test_bleu_5_is_that_of_sacrebleu():
    samples, refs = lines(15, 4), lines(15, 5)
    metric = sacrebleu.BLEU(max_ngram_order=5, effective_order=True)
    row = text.generation(samples, refs)
    expected = [metric.sentence_score(sample, refs).score for sample in samples]
    assert row["bleu_test_5"] == pytest.approx(np.mean(expected), abs=1e-6)
    others = [samples[:i] + samples[i + 1 :] for i in range(15)]
    pairs = zip(samples, others, strict=True)
    expected = [metric.sentence_score(sample, rest).score for sample, rest in pairs]
    assert row["self_bleu_5"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert row["bleu_test_5"] < row["bleu_test"]


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    score = references.rouge_scorer()
    # 2 of 3 words, 1 of 2 bigrams, and "the cat" in order; stems are equal.
    actual = score("the cats sat", ["the cat stood"])
    assert actual == pytest.approx({"rouge_1": 200 / 3, "rouge_2": 50, "rouge_l": 200 / 3})
    # "sat the cat": the same words, no longer in order.
    assert score("sat the cat", ["the cat sat"])["rouge_l"] == pytest.approx(200 / 3)
    assert score("sat the cat", ["the cat sat"])["rouge_1"] == pytest.approx(100)
    # Of several references the best one counts, each measure for itself.
    assert score("a b", ["c d", "a b x x"])["rouge_1"] == pytest.approx(100 * 2 * 2 / 6)


def test_mean_and_best_of_the_texts_of_a_source():
    pytest.importorskip("rouge_score")
    refs = [["a man runs quickly home ."], ["two dogs run in the park .", "dogs run there ."]]
    right, wrong = (
        [group[0] for group in refs],
        ["it is red and blue now", "nothing of the kind at all"],
    )
    texts = [list(pair) for pair in zip(right, wrong, strict=True)]
    actual = references.fidelity(texts, refs)
    low = text.corpus_bleu_of(refs, wrong)[0]
    assert actual["bleu"].mean == pytest.approx((100 + low) / 2)
    assert actual["bleu_best"].mean == pytest.approx(100)
    assert actual["rouge_1_best"] == pytest.approx((100, 0))
    assert actual["rouge_2"].mean == pytest.approx(50)
    assert actual["rouge_1"].se is not None and actual["bleu"].se is None
    scores = references.fidelity([group[:1] for group in texts], refs)
    assert scores["bleu"] == scores["bleu_best"] and scores["rouge_l"] == scores["rouge_l_best"]
    with pytest.raises(ValueError, match="same number of texts"):
        references.fidelity([["a"], ["a", "b"]], refs)


def test_diversity_by_hand():
    actual = references.diversity([["a b c", "a b d"], ["x y", "x y"]])
    # Bigrams {ab, bc} and {ab, bd} share one of three; equal texts share all.
    assert actual["jaccard"].mean == pytest.approx((1 / 3 + 1) / 2)
    assert actual["distinct"].mean == 1.5
    assert actual["dist_1"].mean == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert actual["dist_3"].mean == 1  # the first source only: the other has no 3-grams
    expected = sacrebleu.sentence_bleu("a b c", ["a b d"]).score
    assert actual["self_bleu"].mean == pytest.approx((expected + 100) / 2)
    assert text.jaccard(["a", "a", "b"]) == pytest.approx(1 / 3)  # one word is one n-gram
    assert text.jaccard(["a b"]) is None


def test_the_share_of_the_latent():
    same, other = references.diversity([["a b"] * 2]), references.diversity([["a b", "c d"]])
    assert references.latent_share(same, other) == 0
    assert references.latent_share(other, other) == 1
    assert references.latent_share(other, same) == float("inf")
    assert references.latent_share(same, same) == 0
    assert references.latent_share(references.diversity([["a"]]), other) is None


class Spelt:
    """Writes the source, a word for the latent where it reads one, and a random one."""

    def __init__(self, reads):
        self.reads, self.rng = reads, np.random.default_rng(0)

    def sample_prior(self, n, sources):
        return np.arange(n * len(sources), dtype=np.float32)[:, None, None]

    def decode(self, z_egz, sources, method="greedy", **settings):
        assert len(z_egz) == len(sources) and not set(settings) - {"top_k"}
        word = [f"z{z:.0f} end" if self.reads else "" for z in z_egz.ravel()]
        noise = [
            f"r{r}" if method == "sample" else "" for r in self.rng.integers(0, 99, len(z_egz))
        ]
        parts = zip(sources, word, noise, strict=True)
        return [" ".join(line for line in part if line) for part in parts]


@pytest.mark.parametrize("reads", [True, False])
def test_a_model_that_ignores_its_latent_is_flagged(reads):
    source = ["one two three four", "five six seven eight", "one two three four"]
    lines_of = types.SimpleNamespace(source=source, text=[*source[:2], "another reference here ."])
    report, samples = Report("test", Card()), {}
    sizes = PRESETS["quick"]._replace(generate=8)
    source_text.write_and_score(
        Spelt(reads),
        types.SimpleNamespace(lines=lines_of),
        report,
        samples,
        EvalConfig(outputs=4),
        sizes,
        dict(method="sample", top_k=3),
    )
    assert report.value("latent_ignored") is not reads
    assert bool([note for note in report.notes if "ignores its latent" in note]) is not reads
    assert report.value("latent_distinct") == (4 if reads else 1)
    rows = {row.name: row for row in report.rows}
    assert rows["latent_self_bleu"].baseline < 100 and rows["latent_share"].value >= 0
    assert rows["reference_bleu"].value > 30 > rows["reference_bleu"].baseline
    assert rows["reference_bleu"].note == "2 sources, 1 to 2 references, 4 texts each"
    assert rows["source_dist_1"].se is not None
    assert "BERTScore is left out: evals.bertscore names no model." in report.notes
    assert samples["prior_sources"] == source[:2] and len(samples["prior"]) == 2
    assert len(samples["outputs"]) == 8 and samples["outputs"][0] == samples["prior"][0]
    block = samples["outputs_by_source"][0].splitlines()
    assert block[:3] == [source[0], f"= {source[0]}", "= another reference here ."]
    assert len(block) == 3 + 4


def test_bert_score_is_optional_and_named(monkeypatch):
    references.check_bert_score("")
    with monkeypatch.context() as absent:
        absent.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="evals.bertscore needs bert_score.*pip install"):
            references.check_bert_score("roberta-large")

    def score(candidates, refs, model_type):
        assert model_type == "small" and refs == [["a", "b"]] * 2 + [["c"]] * 2
        return (
            None,
            None,
            [float(candidate in refs) for candidate, refs in zip(candidates, refs, strict=True)],
        )

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(score=score))
    monkeypatch.setattr(references, "check_bert_score", lambda model: None)
    actual = references.bert_score([["a", "x"], ["y", "y"]], [["a", "b"], ["c"]], "small")
    assert actual["bertscore"].mean == 25 and actual["bertscore_best"].mean == 50
