"""Prepared corpora: the same as in memory, made once, whole or not at all, the same if killed."""

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jvae.data import plan
from jvae.data import prepare as preparing
from jvae.data.corpus import survey
from jvae.data.dataset import RowSpec, batches, block_rows, eval_batches, make_dataset
from jvae.data.formats import Reader
from jvae.data.prepare import prepare
from jvae.data.sources import lines_of
from jvae.data.tokenizers import train_bpe, train_word_level
from jvae.errors import DataError

SPEC = RowSpec(dec_row=24, enc_row=64, slots=4, batch_rows=4, seed=7)
WORDS = ["a", "man", "dog", "runs", "plays", "the", "guitar", "é"]
SHARD = 32


def sentences(n, seed=0):
    rng = np.random.RandomState(seed)
    return [" ".join(rng.choice(WORDS, rng.randint(1, 12))) for _ in range(n)]


def tokenizers():
    texts = sentences(50)
    return {"dec": train_word_level(texts), "enc": train_bpe(texts, 262, role="encoder")}


def write(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def stored(folder):
    """Two files of 90 sentences together, prepared in three shards."""
    texts = sentences(90)
    paths = [write(folder / "1.txt", texts[:40]), write(folder / "2.txt", texts[40:])]
    corpus = survey(paths, Reader(), folder)
    return prepare(corpus, tokenizers(), {"dec": 24}, folder, shard=SHARD)


@pytest.fixture(scope="module")
def memory():
    return make_dataset(lines_of(sentences(90), "made"), **tokenizers())


def prepared(cache):
    (actual,) = (cache / "prepared").glob("*/")
    return actual


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def take(stream, n):
    with stream:
        return list(itertools.islice(stream, n))


def test_a_prepared_corpus_is_the_one_in_memory(stored, memory, folder):
    assert len(stored) == 90 and list(stored.texts) == memory.texts
    assert stored.texts[-1] == memory.texts[89] and stored.texts[3:5] == memory.texts[3:5]
    with pytest.raises(IndexError):
        stored.texts[90]
    assert stored.counts() == memory.counts()
    assert stored.counts(np.array([7, 80])) == memory.counts(np.array([7, 80]))
    assert stored.lines.where(39) == f"{folder}/1.txt:40"
    assert stored.lines.where(40) == f"{folder}/2.txt:1"
    assert stored.pad == memory.pad
    for side, encoded in memory.sides.items():
        assert np.array_equal(stored.sides[side].lengths, encoded.lengths)
        assert stored.sides[side].lengths.dtype == np.int32
        assert all(np.array_equal(stored.sides[side].tokens(i), encoded.tokens(i)) for i in (0, 50))
        assert np.array_equal(stored.sides[side].take([4, 70]).flat, encoded.take([4, 70]).flat)
    assert same(list(eval_batches(stored, SPEC)), list(eval_batches(memory, SPEC)))
    assert same(take(batches(stored, SPEC), 60), take(batches(memory, SPEC), 60))


def test_tfds_reads_it(stored, memory, folder):
    source = tfds.builder_from_directory(prepared(folder)).as_data_source("train")
    assert len(source) == 90
    assert source[70]["text"].decode() == memory.texts[70]
    assert source[70]["enc"].tolist() == memory.enc.tokens(70).tolist()
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("block", [plan.BLOCK, 40])  # an epoch of one block, and of three
@pytest.mark.parametrize("before, after", [(1, 2), (2, 4), (4, 1)])
def test_same_order_on_any_number_of_processes_also_after_restore(
    stored, before, after, block, monkeypatch
):
    monkeypatch.setattr(plan, "BLOCK", block)
    whole = take(batches(stored, SPEC), 20)
    assert whole[-1][1][0] >= (1 if block > 40 else 3)  # into the second epoch
    joined = []
    position = (0, 0)
    for count, steps in ((before, 9), (after, 11)):
        parts = [
            take(batches(stored, SPEC, position, process_index=p, process_count=count), steps)
            for p in range(count)
        ]
        for shares in zip(*parts, strict=True):
            joined.append(jax.tree.map(lambda *x: np.concatenate(x), *[b for b, _ in shares]))
            (position,) = {position for _, position in shares}
    assert position == whole[-1][1]
    assert same([batch for batch, _ in whole], joined)


def test_an_empty_share_of_the_last_batch(stored):
    spec = RowSpec(dec_row=24, enc_row=64, slots=4, batch_rows=64)
    rows = len(block_rows(stored, spec).ids_rs)
    assert rows < 48
    ((batch, position),) = take(batches(stored, spec, process_index=3, process_count=4), 1)
    assert position == (1, 0) and not batch.valid_e.any()
    assert (batch.dec.segment_bt == 0).all() and (batch.dec.token_bt == stored.pad["dec"]).all()


@pytest.mark.slow
def test_worker_processes_change_nothing(stored):
    plain = take(batches(stored, SPEC, (0, 8)), 3)
    assert plain[-1][1][0] == 0  # workers start anew with every epoch, which takes long
    assert same(plain, take(batches(stored, SPEC, (0, 8), workers=2), 3))


def test_a_reader_travels_as_a_path(stored):
    stored.texts[0]  # opens the files
    light = pickle.dumps(stored.take)
    assert len(light) < 2_000
    assert same(pickle.loads(light)(np.array([3, 1])), stored.take(np.array([3, 1])))


def test_it_is_prepared_once_for_a_content(folder, stored, tmp_path, monkeypatch):
    dataset = prepared(folder)
    moved = [write(tmp_path / "b.txt", sentences(90)[:40]), folder / "2.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_prepare", lambda *_: pytest.fail("prepared again"))
        corpus = survey(moved, Reader(), folder)
        again = prepare(corpus, tokenizers(), {"dec": 24}, folder, shard=SHARD)
        assert again.lines.where(0) == f"{tmp_path}/b.txt:1"
        other = {"dec": train_word_level(WORDS), "enc": tokenizers()["enc"]}
        changes = [
            (corpus, tokenizers(), {"dec": 25}),
            (corpus, other, {"dec": 24}),
            (survey(moved, Reader(max_words=99), folder), tokenizers(), {"dec": 24}),
            (survey(moved[::-1], Reader(), folder), tokenizers(), {"dec": 24}),
        ]
        for change in changes:
            with pytest.raises(pytest.fail.Exception):
                prepare(*change, folder, shard=SHARD)
    assert prepared(folder) == dataset


def flipped(path):
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "bit": flipped,
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
}


def test_damaged_files_are_made_again(tmp_path):
    corpus = survey(write(tmp_path / "a.txt", sentences(20)), Reader(), tmp_path)
    args = (corpus, {"dec": train_word_level(WORDS)}, {}, tmp_path)
    first = prepare(*args)
    folder = prepared(tmp_path)
    want = content(folder)
    assert not first.notes and len(want) == 10
    for i, name in enumerate(sorted(want)):
        list(DAMAGE.values())[i % len(DAMAGE)](folder / name)
        again = prepare(*args)
        assert content(folder) == want
        assert len(again.notes) == 1 and again.notes[0].endswith("; it is prepared again")
        assert prepare(*args).notes == ()
    for name in ("corpus-train.array_record-00000-of-00001", "columns/words.npy", "meta.json"):
        flipped(folder / name)
        assert list(prepare(*args).texts) == list(first.texts)
        assert content(folder) == want


def test_a_preparation_of_another_corpus_is_not_taken(tmp_path):
    built = []
    for name in ("a", "b"):
        corpus = survey(
            write(tmp_path / f"{name}.txt", sentences(9, ord(name))), Reader(), tmp_path
        )
        built.append((corpus, {"dec": train_word_level(WORDS)}, {}, tmp_path))
        prepare(*built[-1])
    first, second = sorted((tmp_path / "prepared").glob("*/"))
    shutil.rmtree(first)
    shutil.copytree(second, first)
    texts = [list(prepare(*args).texts) for args in built]
    assert texts == [sentences(9, ord("a")), sentences(9, ord("b"))]
    for junk in (b"", b"[]", b"{}", b"[" * 9_999, b"\xff"):
        (first / "meta.json").write_bytes(junk)
        assert [list(prepare(*args).texts) for args in built] == texts
    shutil.rmtree(first)
    first.write_text("a file")
    assert [list(prepare(*args).texts) for args in built] == texts


def test_shards_of_an_attempt_that_was_killed_are_checked(tmp_path, monkeypatch):
    corpus = survey(write(tmp_path / "a.txt", sentences(90)), Reader(), tmp_path)
    args = (corpus, {"dec": train_word_level(WORDS)}, {}, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_check_unchanged", lambda _: 1 / 0)  # as a kill at the end
        with pytest.raises(ZeroDivisionError):
            prepare(*args, shard=SHARD)
    (part,) = (tmp_path / "prepared").glob("*.part")
    flipped(next(part.glob("*-00000-of-*")))
    flipped(part / "shards" / "00001.npz")
    assert list(prepare(*args, shard=SHARD).texts) == sentences(90)
    assert prepare(*args, shard=SHARD).notes == ()


def test_two_at_once_prepare_one_folder(tmp_path):
    path = write(tmp_path / "a.txt", sentences(90))

    def one(_):
        corpus = survey(path, Reader(), tmp_path)
        return list(prepare(corpus, tokenizers(), {}, tmp_path, shard=SHARD).texts)

    with ThreadPoolExecutor(4) as pool:  # the lock is one of files, so threads are as processes
        assert list(pool.map(one, range(4))) == [sentences(90)] * 4
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_two_processes_prepare_one_folder(tmp_path):
    write(tmp_path / "in.txt", sentences(2_000))
    script = write(tmp_path / "both.py", [KILLED.format(tests=str(Path(__file__).parent))])
    env = os.environ | {"PYTHONPATH": str(Path(preparing.__file__).parents[2])}
    both = [subprocess.Popen([sys.executable, script, "", tmp_path], env=env) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    corpus = survey(tmp_path / "in.txt", Reader(), tmp_path)
    dataset = prepare(corpus, tokenizers(), {}, tmp_path, shard=SHARD)
    assert list(dataset.texts) == sentences(2_000) and dataset.notes == ()
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.part"))


def test_pairs_and_labels(tmp_path):
    rows = ["pos\ta b\tc", "neg\td\te f", "pos\tg\th"]
    corpus = survey(
        write(tmp_path / "t.tsv", rows), Reader(source="1", label="0", text="2"), tmp_path
    )
    tok = train_word_level(["a b c d e f g h"])
    dataset = prepare(corpus, {"dec": tok, "cond": tok}, {}, tmp_path, shard=2)
    assert list(dataset.texts) == ["c", "e f", "h"]
    assert list(dataset.lines.source) == ["a b", "d", "g"]
    assert list(dataset.labels) == ["pos", "neg", "pos"]
    (batch,) = eval_batches(dataset, RowSpec(dec_row=16, cond_row=16, slots=3, batch_rows=1))
    assert batch.cond.segment_bt[0].tolist() == [1] * 4 + [2] * 3 + [3] * 3 + [0] * 6
    plain = survey(tmp_path / "t.tsv", Reader(), tmp_path)
    with pytest.raises(DataError, match="the model reads a source text; set data.source"):
        prepare(plain, {"dec": tok, "cond": tok}, {}, tmp_path)


@pytest.mark.parametrize("joined", [("dec",), ("dec", "enc")])
def test_joined_pairs_are_those_in_memory(tmp_path, joined):
    rng = np.random.RandomState(1)
    sentences = [" ".join(rng.choice(WORDS, rng.randint(1, 6))) for _ in range(60)]
    texts, sources = sentences[:30], sentences[30:]
    path = write(tmp_path / "t.tsv", map("\t".join, zip(sources, texts, strict=True)))
    tok = train_word_level(WORDS)
    sides = {"dec": tok, "enc": tok, "cond": tok}
    corpus = survey(path, Reader(source="0"), tmp_path)
    dataset = prepare(corpus, sides, {}, tmp_path, joined=joined, shard=8)
    memory = make_dataset(lines_of(texts, "made"), **sides, sources=sources, joined=joined)
    assert dataset.counts() == memory.counts() and dataset.joined == joined
    spec = RowSpec(dec_row=32, enc_row=32, cond_row=32, slots=3, batch_rows=2)
    assert same(list(eval_batches(dataset, spec)), list(eval_batches(memory, spec)))
    # Not the preparation of a model that joins nothing.
    plain = prepare(corpus, sides, {}, tmp_path, shard=8)
    assert (plain.dec.lengths + plain.cond.lengths - 2 == dataset.dec.lengths).all()


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize("name, label", [("quora", "1"), ("snli_pairs", "entailment")])
def test_real_pairs(tmp_path, name, label):
    path = SHARED / "data" / name / "valid.tsv"
    if not path.is_file():
        pytest.skip(f"no {name} in shared/")
    rows = [line.split("\t") for line in path.read_text().splitlines()[:200]]
    write(tmp_path / "t.tsv", map("\t".join, rows))
    corpus = survey(tmp_path / "t.tsv", Reader(label="0", source="1", text="2"), tmp_path)
    tok = train_bpe([text for row in rows for text in row[1:]], 400)
    dataset = prepare(corpus, dict.fromkeys(("dec", "cond"), tok), {}, tmp_path, joined=("dec",))
    assert label in set(dataset.labels) and len(dataset) == 200
    longest = int(dataset.dec.lengths.max())
    for batch in eval_batches(dataset, RowSpec(longest, cond_row=longest, slots=4, batch_rows=8)):
        for e, i in enumerate(batch.id_e):
            row, segment = divmod(e, 4)
            in_segment = batch.dec.segment_bt[row] == segment + 1
            if i >= 0:
                text = batch.dec.token_bt[row][in_segment & batch.scored_bt[row]]
                source = batch.cond.token_bt[row][batch.cond.segment_bt[row] == segment + 1]
                assert tok.decode(text) == rows[i][2] and tok.decode(source) == rows[i][1]


def test_a_part_of_the_documents(tmp_path):
    path = write(tmp_path / "a.txt", ["One is. Two is.", "Three is.", "Four is. Five is. Six is."])
    corpus = survey(path, Reader(sentences=True), tmp_path)
    tok = {"dec": train_word_level(["One Two Three Four Five Six is."])}
    part = prepare(corpus.select(np.array([True, False, True])), tok, {}, tmp_path, shard=2)
    rest = prepare(corpus.select(np.array([False, True, False])), tok, {}, tmp_path, shard=2)
    assert list(part.texts) == ["One is.", "Two is.", "Four is.", "Five is.", "Six is."]
    assert list(rest.texts) == ["Three is."] and rest.lines.where(0) == f"{path}:2"
    assert (
        part.dec.lengths.tolist() == [4] * 5
        and part.dec.tokens(2).tolist()[1:-1]
        == (tok["dec"].encode_batch(["Four is."])[0].tolist()[1:-1])
    )
    assert len(list((tmp_path / "prepared").glob("*/"))) == 1


def test_line_that_cannot_be_tokenised_is_named_or_dropped(tmp_path):
    path = write(tmp_path / "a.txt", ["a b", "a b c d", "b </s>", "b", "a b c d e"])
    tok = {"dec": train_word_level(["a b c d e"])}
    cache = tmp_path / "cache"
    with pytest.raises(DataError) as caught:
        prepare(survey(path, Reader(), cache), tok, {"dec": 5}, cache, shard=1)
    assert str(caught.value) == (
        f"{path}:2: 6 tokens with tokenizer {tok['dec'].name}, more than the 5 that the model has "
        "positions for (dec side). 2 of 5 lines are too long: cut documents into sentences "
        "(data.sentences=true), give the model more positions (model.*.positions), or leave such "
        "lines out (data.on_error=drop, with data.max_words as the limit in words)"
    )
    with pytest.raises(DataError, match="a.txt:3: spells the special token '</s>' of tokenizer"):
        prepare(survey(path, Reader(), cache), tok, {"dec": 9}, cache, shard=1)
    assert [path.suffix for path in (cache / "prepared").iterdir()] == [".lock"] * 2
    dropping = survey(path, Reader(on_error="drop"), cache)
    dataset = prepare(dropping, tok, {"dec": 5}, cache, shard=1)  # shards without an example
    assert list(dataset.texts) == ["a b", "b"] and dataset.lines.where(1) == f"{path}:4"
    assert dataset.lines.dropped == {"too many tokens": 2, "special token": 1}
    assert (
        "3 of 5 lines (60.0%) were dropped (special token: 1, too many tokens" in dataset.notes[0]
    )
    with pytest.raises(DataError, match="no line is left .*; check the row lengths"):
        prepare(dropping, tok, {"dec": 2}, cache)


def test_unknown_words_are_reported(tmp_path):
    path = write(tmp_path / "a.txt", ["a b", "a zebra"])
    dataset = prepare(
        survey(path, Reader(), tmp_path), {"dec": train_word_level(["a b"])}, {}, tmp_path
    )
    assert (
        len(dataset.notes) == 1 and "25.0% of the tokens are unknown to tokeni" in dataset.notes[0]
    )


def test_file_changed_behind_the_check_is_not_kept(tmp_path):
    path = write(tmp_path / "a.txt", ["a b", "c"])
    corpus = survey(path, Reader(), tmp_path)
    write(path, ["a b", "d"])
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare(corpus, {"dec": train_word_level(["a b c"])}, {}, tmp_path)
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    corpus = survey(write(tmp_path / "a.txt", ["a b", "c"]), Reader(), tmp_path)

    class Full:
        def __init__(self, *_):
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(preparing, "ArrayRecordWriter", Full)
    with pytest.raises(DataError, match="cannot be written there .No space left .*set data.cache"):
        prepare(corpus, {"dec": train_word_level(["a b c"])}, {}, tmp_path)
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]


def test_leftovers_of_others_go_when_they_are_old(tmp_path):
    for name, age in (("old", 8 * 24 * 3600), ("new", 3600)):
        part = tmp_path / "prepared" / f"{name}.part"
        (part / "shards").mkdir(parents=True)
        for path in (part, part / "shards"):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    corpus = survey(write(tmp_path / "a.txt", ["a b", "c"]), Reader(), tmp_path)
    prepare(corpus, {"dec": train_word_level(["a b c"])}, {}, tmp_path)
    assert [path.stem for path in (tmp_path / "prepared").glob("*.part")] == ["new"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from jvae.data import plan
from jvae.data import prepare as preparing
from jvae.data.corpus import survey
from jvae.data.formats import Reader
import test_prepare

place, folder = sys.argv[1], sys.argv[2]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
real, replace = preparing.ArrayRecordWriter, os.replace

class Writer:
    def __init__(self, path, options):
        self.real, self.written, self.last = real(path, options), 0, "00001-of" in path
    def write(self, record):
        self.written += 1
        if place == "middle" and self.last and self.written == 20:
            kill()
        self.real.write(record)
    def close(self):
        self.real.close()

def renamed(a, b):
    if place == "boundary" and "00002-of" in str(b):
        kill()
    replace(a, b)

preparing.ArrayRecordWriter, os.replace = Writer, renamed
corpus = survey(folder + "/in.txt", Reader(), test_prepare.Path(folder))
args = corpus, test_prepare.tokenizers(), {{}}, test_prepare.Path(folder)
preparing.prepare(*args, shard=test_prepare.SHARD)
"""


@pytest.mark.slow
def test_killed_preparation_goes_on_and_gives_the_same_bytes(tmp_path):
    write(tmp_path / "in.txt", sentences(150))
    script = write(tmp_path / "kill.py", [KILLED.format(tests=str(Path(__file__).parent))])
    env = os.environ | {"PYTHONPATH": str(Path(preparing.__file__).parents[2])}
    finished = {}
    for place, shards in (("middle", 1), ("boundary", 2)):
        ran = subprocess.run([sys.executable, script, place, tmp_path], env=env)
        assert ran.returncode == -signal.SIGKILL
        (part,) = (tmp_path / "prepared").glob("*.part")
        actual = {p.name: p.stat().st_ino for p in part.glob("*-of-00005")}
        assert len(actual) == shards and finished.items() <= actual.items()
        assert list(part.glob("*.tmp"))
        finished = actual
    corpus = survey(tmp_path / "in.txt", Reader(), tmp_path)
    prepare(corpus, tokenizers(), {}, tmp_path, shard=SHARD)
    dataset = prepared(tmp_path)
    after = {p.name: p.stat().st_ino for p in dataset.glob("*-of-00005")}
    assert len(after) == 5 and finished.items() <= after.items()
    prepare(corpus, tokenizers(), {}, tmp_path / "whole", shard=SHARD)
    assert content(dataset) == content(prepared(tmp_path / "whole"))
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.part"))


BIG = """
import json, resource, sys, time
from pathlib import Path
from jvae.data.corpus import survey
from jvae.data.dataset import RowSpec, batches
from jvae.data.formats import Reader
from jvae.data.prepare import prepare
from jvae.data.tokenizers import load

folder = Path(sys.argv[1])
begin = time.monotonic()
corpus = survey(folder / "in.txt", Reader(), folder)
surveyed = time.monotonic() - begin
made = prepare(corpus, {"dec": load(folder / "tokenizer", "decoder")}, {}, folder)
prepared = time.monotonic() - begin
with batches(made, RowSpec(dec_row=256, slots=4, batch_rows=8), (1, 8)) as stream:
    (batch, position) = next(stream)
assert batch.valid_e.any() and position == (1, 16)
facts = dict(
    examples=len(made),
    peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    survey_s=surveyed,
    prepare_s=prepared - surveyed,
    first_batch_s=time.monotonic() - begin - prepared,
)
print(json.dumps(facts))
"""


@pytest.mark.slow
def test_half_a_gigabyte_in_bounded_memory_also_after_a_kill(tmp_path):
    block = "".join(f"{' '.join(sentences(12, seed))}\n" for seed in range(2_000))
    copies = -(-500_000_000 // len(block.encode()))
    with (tmp_path / "in.txt").open("w") as file:
        for _ in range(copies):
            file.write(block)
    assert (tmp_path / "in.txt").stat().st_size >= 500_000_000
    train_bpe(sentences(500), 400).save(tmp_path / "tokenizer")
    script = write(tmp_path / "big.py", [BIG])
    env = os.environ | {"PYTHONPATH": str(Path(preparing.__file__).parents[2])}
    command = [sys.executable, script, tmp_path]
    first = subprocess.Popen(command, env=env)
    while len(done := list(tmp_path.glob("prepared/*.part/*-of-?????"))) < 3:
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    before = {p.name: (p.stat().st_ino, p.read_bytes()) for p in done}
    facts = json.loads(subprocess.run(command, env=env, check=True, stdout=-1).stdout)
    print(facts)
    assert facts["examples"] == 2_000 * copies
    assert facts["peak_mb"] < 1_500
    for name, (inode, bytes_) in before.items():
        path = prepared(tmp_path) / name
        assert path.stat().st_ino == inode and path.read_bytes() == bytes_
