"""Reading corpora: what is kept, what is refused, and that every refusal says where and why."""

import gzip
import hashlib
import json
import re

import numpy as np
import pytest

from jvae.data.corpus import cache_dir, survey
from jvae.data.formats import Example, Reader, scan
from jvae.data.sources import lines_of
from jvae.errors import ConfigError, DataError


def write(folder, data, name="text.txt"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(paths, cache, **options):
    corpus = survey(paths, Reader(**options), cache)
    return corpus, [located.example for located in corpus.examples()]


def texts(paths, cache, **options):
    return [example.text for example in read(paths, cache, **options)[1]]


def test_text_is_kept_raw_but_for_ends_and_blanks(tmp_path):
    path = write(tmp_path, "\ufeffa  man\r\n\tdeux élèves \n\ufeffthree\n\ufeff\ufefflast")
    corpus, examples = read(path, tmp_path)
    assert [example.text for example in examples] == ["a  man", "deux élèves", "three", "last"]
    assert [(located.file, located.line, located.document) for located in corpus.examples()][3] == (
        0,
        4,
        3,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.files == ((str(path), digest, 4),)


def test_many_files_globs_and_compression_in_the_order_given(tmp_path):
    write(tmp_path, "b\n", "in/2.txt")
    write(tmp_path, "a\n", "in/1.txt")
    write(tmp_path, gzip.compress(b"x\tc\n"), "in/deep/3.tsv.gz")
    write(tmp_path, gzip.compress(b'{"text": "d"}\n'), "in/4.jsonl.gz")
    write(tmp_path, "e [1]\n", "odd[1].txt")
    names = [f"{tmp_path}/{pattern}" for pattern in ("odd[1].txt", "in/*.jsonl.gz", "in/?.txt")]
    assert texts([*names, f"{tmp_path}/**/*.tsv.gz"], tmp_path) == ["e [1]", "d", "a", "b", "c"]
    corpus, _ = read(f"{tmp_path}/in/?.txt", tmp_path)
    assert str(corpus) == f"{tmp_path}/in/1.txt and 1 more"
    assert [file.lines for file in corpus.files] == [1, 1]


def test_columns_of_tsv(tmp_path):
    path = write(tmp_path, "pos\ta b\t c d \nneg\te\tf\n", "t.tsv")
    assert texts(path, tmp_path) == ["c d", "f"]
    _, examples = read(path, tmp_path, text="-2", source="2", label="0")
    assert examples == [Example("a b", "c d", "pos"), Example("e", "f", "neg")]
    named = write(tmp_path, "id\tsentence\tmood\n7\ta b\tpos\n8\tc\tneg\n", "named.tsv")
    corpus, examples = read(named, tmp_path, text="sentence", label="mood")
    assert examples == [Example("a b", "", "pos"), Example("c", "", "neg")]
    assert [located.line for located in corpus.examples()] == [2, 3]
    same_text = write(tmp_path, named.read_bytes(), "named.txt")
    assert texts(same_text, tmp_path, format="tsv", text="sentence") == ["a b", "c"]


def test_keys_of_json_lines(tmp_path):
    rows = [
        {"context": ["hi", "you"], "replies": ["a\nb", "c"], "stars": 4},
        {"context": "yes", "replies": "d", "stars": 2},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")
    corpus, examples = read(path, tmp_path, text="replies", source="context", label="stars")
    assert examples == [
        Example("a b", "hi you", "4"),
        Example("c", "hi you", "4"),
        Example("d", "yes", "2"),
    ]
    assert [located.document for located in corpus.examples()] == [0, 0, 1]
    assert len(corpus) == 2


def test_documents_are_cut_and_held_out_whole(tmp_path):
    path = write(tmp_path, "One. Two two two.\nThree.\nFour! Five?\n")
    corpus, examples = read(path, tmp_path, sentences=True)
    assert [example.text for example in examples] == [
        "One.",
        "Two two two.",
        "Three.",
        "Four!",
        "Five?",
    ]
    part = corpus.select(np.array([True, False, True]))
    assert list(part.texts()) == ["One.", "Two two two.", "Four!", "Five?"]
    assert len(part) == 2 and part.documents == 3
    short, _ = read(path, tmp_path, sentences=True, on_error="drop", max_words=2)
    assert short.dropped == {"too many words": 1}
    assert list(short.texts()) == ["One.", "Three.", "Four!", "Five?"]


# Name of the file, its bytes, the reader's options, the message after "file:2: ", the reason.
BAD_LINES = {
    "utf8": ("t.txt", b"ok\nab\xff\n", {}, "not valid UTF-8 (byte 0xff at column 3)"),
    "nul": ("t.txt", b"ok\na\0b\n", {}, "holds a NUL character at column 2"),
    "empty": ("t.txt", b"ok\n\nmore\n", {}, "empty line; expected a sentence"),
    "blank": ("t.txt", b"ok\n \t\r\nmore\n", {}, "empty line; expected a sentence"),
    "words": ("t.txt", b"ok\na b c d e f\n", {"max_words": 5}, "6 words, over the limit of 5"),
    "words of a pair": (
        "t.tsv",
        b"a\tok\na b c\td e f\n",
        {"max_words": 5, "source": "0"},
        "6 words with its source, over the limit of 5",
    ),
    "chars": ("t.txt", b"ok\n" + b"x" * 50, {"max_chars": 40}, "50 characters, over the limit of"),
    "huge": ("t.txt", b"ok\n" + b"x" * 999, {"max_chars": 40}, "over 40 characters; expected one"),
    "few columns": ("t.tsv", b"0\tok\n0\n", {}, "1 columns, but the file's first line has 2"),
    "many columns": ("t.tsv", b"ok\na\tb\n", {}, "2 columns, but the file's first line has 1"),
    "empty row": ("t.tsv", b"0\tok\n\n", {}, "empty line; expected columns"),
    "empty column": ("t.tsv", b"0\tok\n1\t \n", {}, "empty line; expected a sentence"),
    "empty source": ("t.tsv", b"a\tok\n\tb\n", {"source": "0"}, "its source: empty line"),
    "empty label": (
        "t.tsv",
        b"a\tok\n\tb\n",
        {"label": "0"},
        "empty label: expected one for every",
    ),
    "cut json": (
        "t.jsonl",
        b'{"text": "ok"}\n{"text": "b\n',
        {},
        "not valid JSON (Unterminated string starting at, column 10)",
    ),
    "no object": ("t.jsonl", b'{"text": "ok"}\n[1]\n', {}, "holds a JSON list; expected an object"),
    "empty json": ("t.jsonl", b'{"text": "ok"}\n\n', {}, "empty line; expected a JSON object"),
    "missing key": (
        "t.jsonl",
        b'{"text": "ok"}\n{"txt": "b", "n": 1}\n',
        {},
        "has no key 'text' (data.text); its keys are 'txt', 'n'",
    ),
    "number": (
        "t.jsonl",
        b'{"text": "ok"}\n{"text": 3}\n',
        {},
        "key 'text' holds a number; expected a string or a list of strings",
    ),
    "null in list": (
        "t.jsonl",
        b'{"text": "ok"}\n{"text": ["a", null]}\n',
        {},
        "key 'text' holds a null; expected a string or a list",
    ),
    "empty list": (
        "t.jsonl",
        b'{"text": "ok"}\n{"text": []}\n',
        {},
        "key 'text' holds an empty list",
    ),
    "label list": (
        "t.jsonl",
        b'{"text": "ok", "y": 1}\n{"text": "b", "y": [1]}\n',
        {"label": "y"},
        "key 'y' holds a list; expected a string",
    ),
    "surrogate": ("t.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}\n', {}, "holds half of a surr"),
    "json nul": ("t.jsonl", b'{"text": "ok"}\n{"text": "a\\u0000"}\n', {}, "holds a NUL character"),
    "label nul": ("t.tsv", b"a\tok\nc\0\tb\n", {"label": "0"}, "NUL label: holds a NUL"),
    "digits": (
        "t.jsonl",
        b'{"text": "ok"}\n{"text": "a", "n": ' + b"1" * 5_000 + b"}\n",
        {},
        "not usable JSON (a number with thousands of digits)",
    ),
    "long key": ("t.jsonl", b'{"text": "ok"}\n{"%b": 1}\n' % (b"k" * 99), {}, "has no key 'text'"),
    "deep": ("t.jsonl", b'{"text": "ok"}\n' + b"[" * 100_000, {}, "JSON nested too deeply"),
}


@pytest.mark.parametrize("name, data, options, message", BAD_LINES.values(), ids=list(BAD_LINES))
def test_bad_line_is_named_or_dropped(tmp_path, name, data, options, message):
    path = write(tmp_path, data, name)
    with pytest.raises(DataError) as caught:
        read(path, tmp_path / "cache", **options)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    long = "a field has over" in message or re.search(r"words|characters", message)
    end = "data.max_words as the limit in words)" if long else "to leave such lines out"
    assert str(caught.value).endswith(end)
    assert not (tmp_path / "cache").exists()
    corpus, examples = read(path, tmp_path / "cache", on_error="drop", **options)
    assert examples[0].text == "ok"
    assert sum(corpus.dropped.values()) == 1


def test_dropped_lines_are_counted_by_reason(tmp_path):
    path = write(tmp_path, b"ok\n\nab\xff\n\n")
    corpus, _ = read(path, tmp_path, on_error="drop")
    assert corpus.dropped == {"empty": 2, "invalid UTF-8": 1}


def test_line_numbers_go_on_after_a_huge_line(tmp_path):
    path = write(tmp_path, b"y" * 5_000 + b"\nnext\n")
    corpus, _ = read(path, tmp_path, on_error="drop", max_chars=40)
    assert [(located.line, located.example.text) for located in corpus.examples()] == [(2, "next")]


# What a file as a whole can be, and the message after "file: ".
BAD_FILES = {
    "empty": (b"", "a.txt", {}, "is empty; expected a text file"),
    "empty gz": (b"", "a.txt.gz", {}, "is empty; expected a text file"),
    "gz of nothing": (gzip.compress(b""), "a.txt.gz", {}, "is empty; expected a text file"),
    "truncated": (gzip.compress(b"abc\n" * 999)[:-9], "a.tsv.gz", {}, "damaged or truncated gzip"),
    "not gzip": (b"plain text\n", "a.txt.gz", {}, "not a gzip file"),
    "hidden gzip": (gzip.compress(b"abc\n"), "a.txt", {}, "is gzip data; give it a name that ends"),
    "utf-16": ("a b\n".encode("utf-16"), "a.txt", {}, "is UTF-16 or UTF-32 text; convert it to"),
    "zip": (b"PK\x03\x04rest", "a.txt", {}, "is a zip archive or a spreadsheet; unpack"),
    "zstd": (b"\x28\xb5\x2f\xfdrest", "a.jsonl", {}, "is zstd data; unpack it"),
    "parquet": (b"PAR1\x15\x04", "a.txt", {}, "is a Parquet file; give it a name that ends"),
    "image": (b"\x89PNG\r\n\x1a\n", "a.txt", {}, "is an image; expected text"),
    "far column": (b"a\tb\n", "a.tsv", {"text": "2"}, "data.text=2, but its first line has 2 col"),
    "no such name": (
        b"id\tbody\n",
        "a.tsv",
        {"text": "sentence"},
        "data.text=sentence, but its first line names no such column; it reads 'id', 'body'",
    ),
    "text has no label": (b"a\n", "a.txt", {"label": "0"}, "data.label is set, but plain text has"),
    "blank": (b"\n\n", "a.txt", {"on_error": "drop"}, "none of its 2 lines can be used ({'empty'"),
    "header alone": (b"sentence\n", "a.tsv", {"text": "sentence"}, "none of its 0 lines can be"),
}


@pytest.mark.parametrize("data, name, options, message", BAD_FILES.values(), ids=list(BAD_FILES))
def test_unusable_file(tmp_path, data, name, options, message):
    path = write(tmp_path, data, name)
    for choice in ("drop", options.get("on_error", "raise")):
        with pytest.raises(DataError) as caught:
            read(path, tmp_path / "cache", **options | {"on_error": choice})
        assert str(caught.value).startswith(f"{path}: {message}")
    assert not (tmp_path / "cache").exists()


def test_garbled_gzip(tmp_path):
    path = write(tmp_path, gzip.compress(b"abc\n")[:12] + b"\xff" * 20, "a.txt.gz")
    with pytest.raises(DataError, match="damaged or truncated gzip file|not a gzip file"):
        read(path, tmp_path)


def test_missing_file_folder_and_pattern(tmp_path):
    write(tmp_path, b"x\n", "train.txt.gz")
    with pytest.raises(DataError, match=r"train.txt: no such file; did you mean train.txt.gz\?"):
        read(tmp_path / "train.txt", tmp_path)
    with pytest.raises(DataError, match="no such file; check the path"):
        read(tmp_path / "nowhere" / "train.txt", tmp_path)
    with pytest.raises(DataError, match="is a folder; .* or a pattern such as"):
        read(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"\*.tsv: no file matches; check the pattern"):
        read(tmp_path / "*.tsv", tmp_path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path, b"x\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jvae.data.sources.hashlib.file_digest", refuse)
    with pytest.raises(DataError, match="cannot be read .Permission denied.; check its permis"):
        read(path, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "xml"}, "data.format is 'xml'.*Known: csv, json, jsonl, parquet, text, tsv"),
        ({"header": "false", "text": "said"}, "data.header=false with data.text=said"),
    ],
)
def test_impossible_options(options, message):
    """All others are fields of the config, whose values are checked before."""
    with pytest.raises(ConfigError, match=message):
        Reader(**options)


def test_scan_holds_one_line_at_a_time(tmp_path):
    path = write(tmp_path, b"one\n\xff\n")
    lines = scan(str(path), Reader())
    assert next(lines) == (1, Example("one"))
    path.unlink()  # the open file is still read: nothing was collected first
    number, fault = next(lines)
    assert (number, fault.reason) == (2, "invalid UTF-8")


def test_a_checked_file_is_not_checked_again_until_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path, b"a\nb\n")
    first, _ = read(path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("jvae.data.corpus.scan", lambda *_: pytest.fail("read again"))
        assert survey(path, Reader(), tmp_path / "cache") == first
        with pytest.raises(pytest.fail.Exception):
            survey(path, Reader(max_words=3), tmp_path / "cache")
    write(tmp_path, b"a\nb\nc\n")
    assert len(survey(path, Reader(), tmp_path / "cache")) == 3
    by_age = sorted(
        (tmp_path / "cache/surveys").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    other, last = by_age
    whole = last.read_bytes()
    torn = [b"", b"{", b"[]", b"7", b"{}", b'{"facts": {}, "check": "x"}', b"\xff", b"[" * 9_999]
    for data in (*torn, whole.replace(b'"documents": 3', b'"documents": 4'), other.read_bytes()):
        last.write_bytes(data)
        corpus = survey(path, Reader(), tmp_path / "cache")
        assert corpus.documents == 3 and len(corpus.notes) == 1
        assert "is damaged or belongs to another file; " in corpus.notes[0]
        assert last.read_bytes() == whole


def test_file_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path, b"a\nb\n")
    corpus = survey(path, Reader(), tmp_path / "cache")
    path.write_bytes(b"a\n")
    with pytest.raises(DataError, match="changed while it was being read; start again"):
        list(corpus.examples())


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_dir("~/x") == type(tmp_path)("~/x").expanduser()
    monkeypatch.setenv("JVAE_CACHE", "/from/variable")
    assert str(cache_dir("")) == "/from/variable"
    monkeypatch.delenv("JVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_dir("")) == "/xdg/jvae"


def test_cache_that_cannot_be_written(tmp_path):
    path = write(tmp_path, b"a\n")
    taken = write(tmp_path, b"", "taken")
    with pytest.raises(DataError, match="prepared data cannot be written there .*; set data.cache"):
        survey(path, Reader(), taken)


def test_sentences_in_memory():
    lines = lines_of(["a b", "c"], "embedded train")
    assert lines.where(1) == "embedded train:2"
    assert lines.files[0].sha256 == hashlib.sha256(b"a b\nc\n").hexdigest()
    assert lines.warning is None
    kept = lines_of(["x"] * 100, "made").keep(np.arange(100) > 0, {"empty": 1})
    assert kept.warning is None
    lost = lines_of(["x"] * 99, "made").keep(np.arange(99) > 0, {"empty": 1})
    assert "made: 1 of 99 lines (1.0%) were dropped (empty: 1)" in str(lost.warning)
