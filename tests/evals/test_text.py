import jax
import numpy as np
import pytest

from jvae.evals import text
from jvae.evals.bleu import References
from jvae.evals.latent import collect_posteriors

sacrebleu = pytest.importorskip("sacrebleu")

WORDS = ["a", "man", "the", "red", "dog", "runs", ",", "quickly", ".", "two", "it's", "park"]


def random_lines(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def test_sentence_bleu_is_that_of_sacrebleu():
    references = [*random_lines(40, seed=1), "a a a a", "a a"]
    lines = [*random_lines(30, seed=2), "a a a a a", "zebra", "", "dogs, dogs. Dogs!"]
    scorer = References(references)
    for line in lines:
        expected = sacrebleu.sentence_bleu(line, references).score
        assert scorer.score(line) == pytest.approx(expected, abs=1e-6), line


def test_self_bleu_leaves_each_line_out_of_its_references():
    lines = [*random_lines(25), "a a a", "a a the", "a a the", "zebra zebra", "the the a a a a"]
    scorer = References(lines)
    expected = []
    for i, line in enumerate(lines):
        others = lines[:i] + lines[i + 1 :]
        expected.append(sacrebleu.sentence_bleu(line, others).score)
        assert scorer.score(line, member=True) == pytest.approx(expected[-1], abs=1e-6), line
    assert text.self_bleu(lines) == pytest.approx(np.mean(expected), abs=1e-6)
    assert text.self_bleu(["one line"]) is None
    assert text.self_bleu(["same words here now"] * 4) == pytest.approx(100)


def test_corpus_bleu_and_its_signature():
    decoded, original = random_lines(20, seed=3), random_lines(20, seed=4)
    score, signature = text.corpus_bleu(decoded, original)
    metric = sacrebleu.BLEU()
    assert score == metric.corpus_score(decoded, [original]).score > 0
    assert signature == str(metric.get_signature())
    metric = sacrebleu.BLEU(effective_order=True)
    metric.sentence_score("a", original)
    expected = str(metric.get_signature())
    assert text.generation(decoded, original)["bleu_test_signature"] == expected


def test_reconstruction_tells_seen_from_unseen():
    row = text.reconstruction(["a b", "c d", "e"], ["a b", "c x", "e"], train=["e", "c x"])
    assert row["exact_match_pct"] == pytest.approx(200 / 3)
    assert row["exact_match_unseen_pct"] == 100
    assert text.reconstruction(["a"], ["a"], train=["a"])["exact_match_unseen_pct"] is None
    assert text.seen_share(["a", "b", "b", "c"], ["b"]) == 50
    with pytest.raises(ValueError, match="2 decoded lines for 1 originals"):
        text.reconstruction(["a", "b"], ["a"])


def test_generation_counts():
    samples = ["a b c d", "a b c d", "x y z w", "a b"]
    row = text.generation(samples, ["a b c d", "q r s t u"], train=["z a b c d", "q"])
    assert row["distinct_lines"] == 3 and row["duplicates_pct"] == 50
    assert row["dist_1"] == 8 / 14 and row["dist_4"] == 2 / 3
    assert row["memorised_pct"] == pytest.approx(200 / 3)
    assert row["memorised_test_pct"] == pytest.approx(100 / 3)
    references = ["a b c d", "q r s t u"]
    expected = np.mean([sacrebleu.sentence_bleu(line, references).score for line in samples])
    assert row["bleu_test"] == pytest.approx(expected, abs=1e-6)
    assert text.distinct(["a"])["dist_2"] is None and text.memorised(["a b"], set()) is None
    with pytest.raises(ValueError, match="0 samples, 1 test"):
        text.generation([], ["a"])


def test_token_accuracy_is_that_of_the_full_decoder(toys):
    model, words = toys.discrete(), toys.all_strings()[::5]
    params, key = toys.discrete_params(strength=4.0), jax.random.key(0)
    batches = toys.text_batches(words, len(words))
    posts = collect_posteriors(model, params, batches, key)
    z_ed = np.tanh(posts.mean_egz.reshape(len(words), -1))
    prev = np.concatenate([np.full((len(words), 1), 3), words[:, :-1]], axis=1)
    logits = np.asarray(params["prev"])[prev] + (z_ed @ np.asarray(params["out"]))[:, None]
    expected = 100 * np.mean(logits.argmax(-1) == words)
    assert text.token_accuracy(model, params, batches, posts) == pytest.approx(expected)
    packed = toys.text_batches(words, 2, slots=3, pad=2, empty=(1, 5))
    assert text.token_accuracy(model, params, packed, posts) == pytest.approx(expected)
    other = text.token_accuracy(model, params, batches, posts, baseline=True)
    shuffled = np.asarray(params["prev"])[prev] + (z_ed[posts.other()] @ params["out"])[:, None]
    assert other == pytest.approx(100 * np.mean(shuffled.argmax(-1) == words))
    assert other != pytest.approx(expected)


def test_unpack_restores_examples(toys):
    words = toys.all_strings()[:5]
    (batch,) = toys.text_batches(words, 2, slots=4, pad=1, empty=(0, 3, 6))
    token_et, length_e, scored_et = text.unpack(batch)
    for e, i in enumerate(batch.id_e):
        assert length_e[e] == (0 if i < 0 else 5) == scored_et[e].sum() + (i >= 0)
        if i >= 0:
            assert token_et[e, :5].tolist() == [3, *words[i]]
    assert token_et.shape[1] == 8 and not scored_et[:, 0].any()
