"""Datasets and their batches: what is refused, what is counted, resuming, processes, threads."""

import dataclasses
import gc
import itertools
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jvae.data.corpus import survey
from jvae.data.dataset import Counts, RowSpec, batches, block_rows, eval_batches, make_dataset
from jvae.data.formats import Reader
from jvae.data.plan import bucket_lengths, propose_rows
from jvae.data.prefetch import Prefetch
from jvae.data.sources import lines_of
from jvae.data.tokenizers import TextTokenizer, load, train_bpe, train_word_level
from jvae.errors import ConfigError, DataError

PACK = RowSpec(dec_row=24, enc_row=64, slots=4, batch_rows=4, seed=7)
BUCKET = RowSpec(dec_row=24, enc_row=64, packing="bucket", batch_rows=4, seed=7)


def sentences(n, seed=0):
    rng = np.random.RandomState(seed)
    words = ["a", "man", "dog", "runs", "plays", "the", "guitar"]
    return [" ".join(rng.choice(words, rng.randint(1, 12))) for _ in range(n)]


@pytest.fixture(scope="module")
def data():
    lines = lines_of(sentences(90), "made")
    return make_dataset(
        lines, train_word_level(lines.text), train_bpe(lines.text, 262, role="encoder")
    )


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def take(stream, n):
    with stream:
        return list(itertools.islice(stream, n))


def test_tokens_survive_from_text_to_batch(data):
    spec = PACK
    seen = {}
    for batch in eval_batches(data, spec):
        assert batch.dec.token_bt.shape == (4, 24) and batch.enc.token_bt.shape == (4, 64)
        for e, i in enumerate(batch.id_e):
            if i >= 0:
                row, slot = divmod(e, spec.slots)
                seen[int(i)] = [
                    side.token_bt[row][side.segment_bt[row] == slot + 1].tolist()
                    for side in (batch.enc, batch.dec)
                ]
    assert sorted(seen) == list(range(90))
    for i, (enc, dec) in seen.items():
        assert enc == data.enc.tokens(i).tolist()
        assert dec == data.dec.tokens(i).tolist()


@pytest.mark.parametrize("spec", [PACK, BUCKET], ids=["pack", "bucket"])
def test_each_epoch_has_every_example_once_in_another_order(data, spec):
    orders = {}
    for batch, (epoch, row) in take(batches(data, spec), 80):
        here = epoch if row else epoch - 1
        orders.setdefault(here, []).extend(batch.id_e[batch.id_e >= 0].tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(90))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("spec", [PACK, BUCKET], ids=["pack", "bucket"])
def test_resume_gives_the_same_stream(data, spec):
    whole = take(batches(data, spec), 50)
    assert same([b for b, _ in whole], [b for b, _ in take(batches(data, spec), 50)])
    for k in (0, 3, 20, 37):
        rest = take(batches(data, spec, whole[k][1]), 50 - k - 1)
        assert [p for _, p in rest] == [p for _, p in whole[k + 1 :]]
        assert same([b for b, _ in rest], [b for b, _ in whole[k + 1 :]])


@pytest.mark.parametrize("spec", [PACK, BUCKET], ids=["pack", "bucket"])
@pytest.mark.parametrize("count", [2, 4])
def test_rows_do_not_depend_on_the_number_of_processes(data, spec, count):
    whole = take(batches(data, spec), 30)
    parts = [
        take(batches(data, spec, process_index=p, process_count=count), 30) for p in range(count)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[batch for batch, _ in shares])
        assert same(batch[0], joined)
        assert {position for _, position in shares} == {batch[1]}
    shares = [
        list(eval_batches(data, spec, process_index=p, process_count=count)) for p in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == len(list(eval_batches(data, spec)))


def test_last_batch_of_an_epoch_is_filled_with_empty_rows(data):
    spec = RowSpec(dec_row=24, enc_row=64, slots=4, batch_rows=64)
    (batch, position), *_ = take(batches(data, spec), 1)
    rows = len(block_rows(data, spec).ids_rs)
    assert position == (1, 0) and rows < 64
    assert (batch.dec.segment_bt[rows:] == 0).all() and (batch.dec.segment_bt[:rows, 0] > 0).all()
    assert not batch.valid_e.reshape(64, 4)[rows:].any() and not batch.scored_bt[rows:].any()


def test_part_of_a_split(data):
    ids = np.array([80, 3, 41, 5])
    for spec in (PACK, BUCKET):
        got = [i for batch in eval_batches(data, spec, ids) for i in batch.id_e if i >= 0]
        assert sorted(got) == sorted(ids)
    shapes = {b.dec.token_bt.shape for b in eval_batches(data, BUCKET, ids)}
    lengths = {side: encoded.lengths for side, encoded in data.sides.items()}
    sizes = bucket_lengths(lengths, BUCKET.row, BUCKET.buckets)["dec"]
    assert shapes <= {(4, size) for size in sizes}


def test_fill_is_of_tokens_over_places(data):
    for spec in (PACK, BUCKET):
        got = block_rows(data, spec)
        all_batches = list(eval_batches(data, spec))
        ordered = block_rows(data, spec, shuffle=False)
        rows = sum(b.dec.segment_bt[:, 0].astype(bool).sum() for b in all_batches)
        tokens = sum((b.dec.segment_bt > 0).sum() for b in all_batches)
        assert tokens == data.dec.lengths.sum()
        assert rows == (ordered.ids_rs[:, 0] >= 0).sum()
        assert 0 < got.fill["dec"] <= 1 and 0 < got.slot_fill <= 1
    packed = block_rows(data, PACK)
    assert packed.fill["dec"] == pytest.approx(tokens / (len(packed.ids_rs) * 24))


@pytest.mark.parametrize("corpus", ["ptb", "snli"])
def test_fill_of_real_sentences(corpus, tmp_path):
    shared = Path(__file__).parents[3] / "shared"
    if not (shared / "data" / corpus).is_dir():
        pytest.skip(f"needs the {corpus} corpus and the vocabularies of BERT and GPT-2")
    dec = load(shared / "tokenizers/gpt2", "decoder")
    enc = load(shared / "tokenizers/bert-base-cased", "encoder")
    lines = survey(shared / "data" / corpus / "valid.txt", Reader(), tmp_path)
    some = list(itertools.islice(lines.texts(), 3000))
    dataset = make_dataset(lines_of(some, corpus), dec, enc)
    row = propose_rows({side: encoded.lengths for side, encoded in dataset.sides.items()}, 256)
    spec = RowSpec(dec_row=row.row["dec"], enc_row=row.row["enc"], slots=row.slots)
    got = block_rows(dataset, spec)
    assert min(*got.fill.values(), got.slot_fill) >= 0.95


def test_counts():
    texts = ["a man", "the dog  runs é"]
    dataset = make_dataset(lines_of(texts, "made"), train_word_level(texts))
    assert dataset.counts() == Counts(sentences=2, words=6, chars=5 + 15, tokens=6)
    assert dataset.counts(np.array([1])) == Counts(1, 4, 15, 4)
    assert dataset.texts[1] == "the dog  runs é"


def test_source_texts_are_the_cond_side():
    texts, sources = ["a b", "c"], ["x y z", "x"]
    tok = train_word_level(texts + sources)
    dataset = make_dataset(lines_of(texts, "made"), tok, cond=tok, sources=sources)
    spec = RowSpec(dec_row=16, cond_row=16, slots=2, batch_rows=1)
    (batch,) = eval_batches(dataset, spec)
    assert batch.enc is None
    assert batch.cond.segment_bt[0].tolist() == [1] * 5 + [2] * 3 + [0] * 8
    with pytest.raises(ValueError, match="a cond tokenizer needs one source text for each line"):
        make_dataset(lines_of(texts, "made"), tok, cond=tok, sources=["x"])


def pairs(joined, **changes):
    texts, sources = ["a b", "c", "a c"], ["x y z", "x", "y y"]
    tok = train_word_level(texts + sources)
    sides = dict(dec=tok, enc=tok.for_role("encoder"), cond=tok) | changes
    lines = lines_of(texts, "made")
    return tok, make_dataset(lines, **sides, sources=sources, joined=joined)


def test_joined_sides_hold_source_and_text_of_which_the_text_is_scored():
    tok, dataset = pairs(("enc", "dec"))
    start, end = tok.start_id, tok.end_id
    ids = lambda text: tok.encode_batch([text])[0].tolist()[1:-1]  # noqa: E731
    want = [[*ids(s), end, *ids(t), end] for s, t in (("x y z", "a b"), ("x", "c"), ("y y", "a c"))]
    assert [dataset.dec.tokens(i).tolist() for i in range(3)] == want
    assert [dataset.enc.tokens(i).tolist() for i in range(3)] == want
    assert dataset.cond.tokens(1).tolist() == [*ids("x"), end]
    assert start not in dataset.dec.flat and start not in dataset.cond.flat
    assert dataset.target_lengths.tolist() == [3, 2, 3]
    assert dataset.counts() == Counts(sentences=3, words=5, chars=7, tokens=5)
    spec = RowSpec(dec_row=16, enc_row=16, cond_row=8, slots=3, batch_rows=2, seed=2)
    actual = {}
    for batch in (batch for batch, _ in take(batches(dataset, spec), 4)):
        for e, i in enumerate(batch.id_e):
            row, segment = divmod(e, 3)
            inside = batch.dec.segment_bt[row] == segment + 1
            scored = batch.scored_bt[row] & inside
            if i < 0:
                assert not scored.any()
                continue
            assert batch.dec.token_bt[row][inside].tolist() == want[i]
            assert batch.dec.token_bt[row][scored].tolist() == want[i][-dataset.target_lengths[i] :]
            source = batch.cond.token_bt[row][batch.cond.segment_bt[row] == segment + 1]
            assert source.tolist() == want[i][: -dataset.target_lengths[i]]
            actual[int(i)] = True
    assert set(actual) == {0, 1, 2}


def test_one_side_may_be_joined_alone():
    tok, dataset = pairs(("dec",))
    assert dataset.dec.tokens(1).tolist()[-2:] == dataset.enc.tokens(1).tolist()[1:]
    assert dataset.enc.tokens(1).tolist()[0] == tok.start_id
    assert (dataset.dec.lengths - dataset.cond.lengths == dataset.enc.lengths - 1).all()


def test_joined_sides_need_one_tokenizer():
    other = train_word_level(["a b c x y z w"], role="encoder")
    with pytest.raises(ConfigError, match="the dec side of this model holds the source too"):
        pairs(("dec",), cond=other)


def test_source_and_text_share_the_limit_of_a_joined_side():
    tok = train_word_level(["a b c x"])
    args = dict(dec=tok, cond=tok, sources=["x x x", "x"], joined=("dec",), limits={"dec": 6})
    with pytest.raises(DataError, match="made:1: 7 tokens .* more than the 6 that the model"):
        make_dataset(lines_of(["a b", "a b c"], "made"), **args)
    dataset = make_dataset(lines_of(["a b", "a b c"], "made"), **args, on_error="drop")
    assert list(dataset.texts) == ["a b c"] and len(dataset.cond.lengths) == 1


def test_line_over_the_limit_is_named_or_dropped():
    path = "made"
    lines = lines_of(["a b", "a b c d", "b"], path)
    tok = train_word_level(lines.text)
    with pytest.raises(DataError) as caught:
        make_dataset(lines, tok, limits={"dec": 5})
    expected = (
        f"{path}:2: 6 tokens with tokenizer {tok.name}, "
        "more than the 5 that the model has positions for (dec side)."
    )
    assert str(caught.value).startswith(expected)
    dataset = make_dataset(lines, tok, limits={"dec": 5}, on_error="drop")
    assert list(dataset.texts) == ["a b", "b"] and dataset.lines.where(1) == f"{path}:3"
    assert dataset.dec.lengths.tolist() == [4, 3]
    assert dataset.lines.dropped == {"too many tokens": 1}
    assert "1 of 3 lines (33.3%) were dropped (too many tokens: 1)" in dataset.notes[0]
    with pytest.raises(DataError, match="no line is left"):
        make_dataset(lines, tok, limits={"dec": 2}, on_error="drop")


def test_line_that_spells_a_special_token():
    lines = lines_of(["a b", "a </s> b"], "made")
    tok = train_word_level(["a b"])
    with pytest.raises(DataError, match="made:2: spells the special token '</s>' of tokenizer"):
        make_dataset(lines, tok)
    assert list(make_dataset(lines, tok, on_error="drop").texts) == ["a b"]


def test_unknown_words_are_reported_but_markers_of_the_corpus_are_not():
    tok = train_word_level(["a b"])
    noted = make_dataset(lines_of(["a b", "a zebra"], "made"), tok).notes
    assert len(noted) == 1 and noted[0].startswith("made: 25.0% of the tokens are unknown")
    assert make_dataset(lines_of(["a <unk>"], "made"), tok).notes == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"packing": "none"}, "data.packing='none': expected 'pack' or 'bucket'"),
        ({"packing": "bucket"}, "data.slots=4: expected 1 with data.packing=bucket"),
        ({"batch_rows": 0}, "data.batch_rows=0: expected 1 or more"),
        ({"enc_row": 0}, "data.enc_row=0: expected 1 or more"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        RowSpec(**{"dec_row": 8, "slots": 4} | change)


def test_settings_that_do_not_fit_the_data(data):
    with pytest.raises(ConfigError, match=r"data.enc_row: row lengths are set for \['dec'\]"):
        block_rows(data, RowSpec(dec_row=24))
    with pytest.raises(ConfigError, match="data.batch_rows=4: expected a multiple of the 3 proc"):
        batches(data, PACK, process_count=3)
    with pytest.raises(DataError, match="cannot resume at row 4000 of block 2"):
        take(batches(data, PACK, (2, 4000)), 1)
    with pytest.raises(DataError, match="cannot resume at row 2 of block 0"):
        take(batches(data, BUCKET, (0, 2)), 1)


def test_prefetch_raises_what_its_thread_raised_after_the_items_before_it():
    def two_then_fail():
        yield 1
        yield 2
        raise KeyError("lost")

    stream = Prefetch(two_then_fail, 1)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(stream)
    assert list(stream) == []


def test_prefetch_stays_within_its_depth_and_ends_when_closed_or_forgotten():
    built = []
    go_on = threading.Event()

    def count():
        for i in itertools.count():
            built.append(i)
            if i == 3:
                go_on.set()
            yield i

    before = threading.active_count()
    stream = Prefetch(count, 3)
    assert go_on.wait(10)  # three lie in the queue, the fourth is held by the thread
    assert len(built) == 4
    stream.close()
    assert threading.active_count() == before and list(stream) == []
    forgotten = Prefetch(count, 1)
    thread = forgotten._thread
    del forgotten
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_prefetch_of_a_finite_iterator_ends():
    assert list(Prefetch(lambda: iter([1, 2, 3]), 2)) == [1, 2, 3]


def test_sides_with_one_tokenizer_are_tokenised_once(monkeypatch):
    """Unless they differ in their special tokens, as the encoder of T5 has no start token."""
    read, plain = [], TextTokenizer.encode_batch

    def encode_batch(self, texts):
        read.append(self)
        return plain(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode_batch", encode_batch)
    texts = ["a b c", "b a"]
    tok = train_word_level(texts)
    dataset = make_dataset(lines_of(texts, "made"), tok, tok.for_role("encoder"))
    assert len(read) == 1 and dataset.enc is dataset.dec
    without_start = dataclasses.replace(tok, start_id=None)
    dataset = make_dataset(lines_of(texts, "made"), tok, without_start)
    assert len(read) == 3
    assert dataset.enc.lengths.tolist() == [4, 3] and dataset.dec.lengths.tolist() == [5, 4]


def test_tokens_are_kept_by_text_and_tokenizer(tmp_path):
    texts = ["a b c", "b a"]
    tok = train_word_level(texts)
    keep = dict(cache=tmp_path)
    for lines in (texts, texts[::-1], ["a b", "c b a"], [" ".join(texts)]):
        for tokenizer in (tok, dataclasses.replace(tok, prefix="a "), train_word_level(["c b a"])):
            expected = make_dataset(lines_of(lines, "made"), tokenizer).dec
            for _ in range(2):
                kept = make_dataset(lines_of(lines, "made"), tokenizer, **keep).dec
                assert [kept.tokens(i).tolist() for i in range(len(lines))] == [
                    expected.tokens(i).tolist() for i in range(len(lines))
                ]
