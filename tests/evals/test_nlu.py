"""Tasks of language understanding: files, pairs of sentences, budgets, heads and scores."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from jvae.api import Posterior
from jvae.data.pairs import encode_pairs
from jvae.data.tokenizers import train_word_level
from jvae.errors import ConfigError, DataError
from jvae.evals import classify, nlu, nlu_tasks, probe
from jvae.evals.card import Card, Report
from jvae.evals.definitions import define

TOK = train_word_level(["a b c d e f g h"], role="encoder")


def test_pairs_are_one_sequence_with_types():
    encoded, cut = encode_pairs(TOK, ["a b", "c"], ["d", "e f"], 20)
    ids = {word: TOK.encode_batch([word])[0][1] for word in "abcdef"}
    start, end = TOK.start_id, TOK.end_id
    assert encoded.tokens(0).tolist() == [start, ids["a"], ids["b"], end, ids["d"], end]
    assert encoded.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1] and cut == 0
    single, _ = encode_pairs(TOK, ["a b"], None, 20)
    assert single.types is None and single.tokens(0).tolist() == encoded.tokens(0).tolist()[:4]


def test_the_longer_sentence_of_a_pair_is_cut_first():
    encoded, cut = encode_pairs(TOK, ["a b c d e f", "a"], ["g", "b c d e f g"], 6)
    texts = [TOK.decode(encoded.tokens(i)[1:4]) for i in range(2)]
    assert encoded.lengths.tolist() == [6, 6] and cut == 2
    assert texts[0] == "a b" and encoded.tokens(0)[3] == TOK.end_id == encoded.tokens(0)[5]
    assert TOK.decode(encoded.tokens(1)[[0, 1, 2]]) == "a"  # whole
    assert encoded.types.tolist() == [0] * 4 + [1] * 2 + [0] * 3 + [1] * 3
    single, cut = encode_pairs(TOK, ["a b c d", "a"], None, 4)
    assert single.tokens(0)[-1] == TOK.end_id and len(single.tokens(0)) == 4 and cut == 1


def write(folder, train, valid):
    for split, rows in (("train", train), ("valid", valid)):
        (folder / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return str(folder)


def test_files_of_a_task(tmp_path):
    rows = [("1", 'a "b', "c"), ("0", "d", "e")]
    actual = nlu_tasks.read("glue/rte", write(tmp_path, rows, rows[1:]))
    assert actual.names == ("0", "1") and actual.train.label_e.tolist() == [1, 0]
    assert (actual.train.first, actual.train.second) == (['a "b', "d"], ["c", "e"])
    assert actual.valid.label_e.tolist() == [0] and actual.files[0]["lines"] == 2
    pairs = [("2.5", "a", "b"), ("4", "c", "d")]
    actual = nlu_tasks.read("stsb", write(tmp_path, pairs, pairs))
    assert actual.names == () and actual.train.label_e.tolist() == [2.5, 4.0]
    single = [("pos", "a b"), ("neg", "c")]
    actual = nlu_tasks.read("sst2", write(tmp_path, single, single))
    assert actual.train.second is None and actual.names == ("neg", "pos")


@pytest.mark.parametrize(
    ("task", "train", "valid", "message"),
    [
        (
            "rte",
            [("0", "a", "b"), ("1", "c", "d")],
            [("2", "e", "f")],
            "has the labels 2; those of train are 0, 1",
        ),
        ("rte", [("0", "a", "b")], [("0", "e", "f")], "all labels are '0'; expected two at least"),
        ("rte", [("0", "a")], [("0", "e")], "data.text=2, but its first line has 2 columns"),
        ("sst2", [("0", "a"), ("1", " ")], [("0", "a")], "train.tsv:2: "),
        ("stsb", [("x", "a", "b")], [("1", "a", "b")], "label 'x': expected a number"),
    ],
)
def test_files_that_do_not_fit(tmp_path, task, train, valid, message):
    with pytest.raises(DataError, match=message):
        nlu_tasks.read(task, write(tmp_path, train, valid))


def test_tasks_and_folders_by_name(tmp_path):
    with pytest.raises(ConfigError, match="--task=rtee: expected one of cola, sst2"):
        nlu_tasks.named("rtee")
    with pytest.raises(DataError, match="has no train.tsv or train.tsv.gz; expected lines of a"):
        nlu_tasks.read("rte", str(tmp_path))


def test_scores_by_hand():
    said, label = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    actual = nlu_tasks.scores(said, label, 2)
    # Two right of class 1 (of three said, three true), one of class 0 (of two and two).
    assert actual["accuracy"] == 60 and actual["f1"] == pytest.approx(200 / 3)
    assert actual["macro_f1"] == pytest.approx((200 / 3 + 50) / 2)
    assert actual["matthews"] == pytest.approx(100 * (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert nlu_tasks.scores(np.zeros(5), label, 2)["matthews"] == 0
    assert "f1" not in nlu_tasks.scores(np.array([0, 1, 2]), np.array([0, 1, 2]), 3)
    ranks = nlu_tasks.scores(np.array([1.0, 2, 30]), np.array([0.1, 0.2, 0.3]), 0)
    assert ranks["spearman"] == pytest.approx(100) and ranks["pearson"] < 95
    assert nlu_tasks.scores(np.ones(3), np.arange(3), 0) == {"spearman": 0.0, "pearson": 0.0}
    assert all(define(f"nlu_{name}") for name in (*actual, *ranks))
    assert all(define(f"nlu_{name}_each_10").startswith("of a head") for name in actual)


def bag(dim=6):
    """A posterior whose features are a sum of word vectors, halves of a pair apart."""

    def features(params, batch, drop=None, *, cond=None):
        side = batch.enc
        x_btd = params["word"][side.token_bt] * (side.segment_bt > 0)[..., None]
        type_bt = jnp.zeros_like(side.token_bt) if side.type_bt is None else side.type_bt
        second_ed = jnp.sum(x_btd * type_bt[..., None], axis=1)
        return jnp.concatenate([jnp.sum(x_btd, axis=1) - second_ed, second_ed], axis=-1)

    post = Posterior(
        encode=lambda params, batch, drop=None, *, cond=None, key_e=None: features(params, batch),
        sample=None,
        log_prob=None,
        mean=lambda params, post: post[:, None, :2],
        features=features,
    )
    model = types.SimpleNamespace(post=post, metric_post=post)
    word = np.random.default_rng(0).normal(size=(TOK.vocab_size, dim)).astype(np.float32)
    return model, {"word": jnp.asarray(word)}


def task(count, seed):
    """Pairs; the label says whether the first words of both are among a to d."""
    rng = np.random.default_rng(seed)
    first, second = rng.choice(list("abcdefgh"), (2, count))
    return list(first), list(second), (first < "e").astype(np.int32)


def examples(count, seed):
    first, second, label_e = task(count, seed)
    encoded, _ = encode_pairs(TOK, first, second, 16)
    return classify.Examples(encoded, 8, TOK.pad_id, "enc"), label_e


@pytest.mark.parametrize("features", ["pooled", "mean"])
def test_frozen_features_do_not_depend_on_batches(features):
    model, params = bag()
    extract = classify.extractor(model, features)
    part, _ = examples(11, 0)
    actual = [classify.frozen_features(extract, params, part, size, 0) for size in (4, 16)]
    np.testing.assert_allclose(*actual, atol=1e-6)
    assert actual[0].shape == (11, 12 if features == "pooled" else 2)


def test_heads_learn_what_the_features_say():
    model, params = bag()
    extract = classify.extractor(model, "pooled")
    (train, label_e), (test, known_e) = examples(60, 1), examples(30, 2)
    train_ed, test_ed = (classify.frozen_features(extract, params, p, 16, 0) for p in (train, test))
    said_e = classify.fit_frozen(train_ed, label_e, 2)(test_ed)
    assert np.mean(said_e == known_e) > 0.9
    assert set(classify.fit_frozen(train_ed[:1], label_e[:1], 2)(test_ed)) == {label_e[0]}
    values = classify.fit_frozen(train_ed, label_e.astype(np.float32), 0)(test_ed)
    assert np.corrcoef(values, known_e)[0, 1] > 0.8


def test_training_with_the_encoder_beats_what_is_frozen():
    model, params = bag()
    params = {"word": params["word"] * 1e-3}
    before = np.asarray(params["word"]).copy()
    trainer = classify.Trainer(
        classify.extractor(model, "pooled"), 2, classify.Settings(20, 0.05, 16)
    )
    (train, label_e), (test, known_e) = examples(60, 1), examples(30, 2)
    said_e = trainer.predict(params, train, label_e, np.arange(60), test, 0)
    assert np.mean(said_e == known_e) > 0.9
    np.testing.assert_array_equal(params["word"], before)  # where training starts is left alone
    again_e = trainer.predict(params, train, label_e, np.arange(60), test, 0)
    np.testing.assert_array_equal(said_e, again_e)
    # Few examples: one batch, most of it empty rows that count for nothing.
    few_e = trainer.predict(params, train, label_e, np.flatnonzero(label_e)[:2], test, 0)
    assert set(few_e) == {1}


def test_parameters_that_do_not_train_keep_their_values():
    model, params = bag()
    params = {"word": params["word"] * 1e-3, "other": params["word"]}
    extract = classify.extractor(model, "pooled")
    (train, label_e), (test, known_e) = examples(60, 1), examples(30, 2)

    def said(trains):
        settings = classify.Settings(20, 0.05, 16)
        trainer = classify.Trainer(extract, 2, settings, trains)
        return trainer.predict(params, train, label_e, np.arange(60), test, 0)

    everything = said(lambda name: True)
    np.testing.assert_array_equal(said(lambda name: name == "word"), everything)
    # The head alone learns little from features this small.
    assert np.mean(said(lambda name: False) == known_e) < np.mean(everything == known_e) - 0.1


def test_the_pattern_of_what_trains():
    params = {"encoder": {"lora": jnp.ones(1), "kernel": jnp.ones(1)}}
    request = nlu.Request(freeze=False, trainable="lora")
    assert list(map(nlu._trainable(request, params), ("encoder/lora", "encoder/kernel"))) == [1, 0]
    assert nlu._trainable(nlu.Request(), params)("encoder/kernel")
    with pytest.raises(ConfigError, match="needs --finetune.freeze=false"):
        nlu._trainable(nlu.Request(trainable="lora"), params)
    with pytest.raises(ConfigError, match="'loar' matches no .* encoder, kernel, lora"):
        nlu._trainable(nlu.Request(freeze=False, trainable="loar"), params)


def test_the_error_of_a_single_fit():
    report = Report("t", Card())
    valid = nlu_tasks.Labelled([], None, np.array([0, 1, 1, 1]))
    data = nlu_tasks.TaskData(None, valid, ("0", "1"), [])
    single = {None: [{"accuracy": 75.0, "f1": 50.0}]}
    nlu._add(report, {"nlu": single, "untrained": single}, data)
    accuracy, f1 = report.rows
    assert accuracy.se == pytest.approx(100 * np.sqrt(0.75 * 0.25 / 4)) and f1.se is None


def test_draws_are_of_each_class():
    label_e = np.repeat([0, 1], [30, 5])
    draws = probe.draws_of(label_e, 8, 3)
    assert [np.bincount(label_e[ids]).tolist() for ids in draws] == [[8, 5]] * 3
    assert len({tuple(ids) for ids in draws}) == 3
    report = Report("t", Card())
    assert nlu._budgets(report, label_e, (1, 30, 31)) == (1, 30)
    assert report.notes == [
        "31 of each class are left out: the most frequent label, 0, has 30 sentences in training."
    ]
    assert nlu._budgets(report, label_e, ()) == (None,)
    assert [ids.tolist() for ids in nlu._draws(label_e, None, 3, 0)] == [list(range(35))]


def test_rows_stand_beside_the_untrained_encoder():
    report = Report("t", Card())
    data = nlu_tasks.TaskData(
        None, nlu_tasks.Labelled([], None, np.array([0, 1, 1])), ("0", "1"), []
    )
    draws = lambda *values: {5: [{"accuracy": value} for value in values]}  # noqa: E731
    nlu._add(
        report,
        {"nlu": draws(60.0, 70.0), "untrained": draws(50.0, 52.0), "backbone": draws(80.0, 80.0)},
        data,
    )
    (row,) = report.rows
    assert (row.name, row.value, row.baseline) == ("nlu_accuracy_each_5", 65, 51)
    assert row.se == pytest.approx(np.std([60, 70], ddof=1))
    assert row.note == "2 draws, their sd; most frequent 66.7; backbone alone 80.0"
