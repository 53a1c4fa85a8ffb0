"""Files that are not to be opened or cannot be read: one message each, at once."""

import os
import socket
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from jvae.data.corpus import survey
from jvae.data.formats import Example, Reader
from jvae.errors import DataError


def read(path, **options):
    corpus = survey(path, Reader(**options), Path(path).parent / "cache")
    return [located.example for located in corpus.examples()]


def texts(path, **options):
    return [example.text for example in read(path, **options)]


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind(str(path))


# How to make it, and the message after "file: ".
NOT_FILES = {
    "pipe": (os.mkfifo, "is a pipe; write its output to a file first"),
    "socket": (socket_at, "is a socket; expected a file"),
    "folder": (os.mkdir, "is a folder; expected a text file"),
    "circle": (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic"),
}


@pytest.mark.parametrize("make, message", NOT_FILES.values(), ids=list(NOT_FILES))
@pytest.mark.parametrize("suffix", ["txt", "csv", "json", "parquet", "txt.gz"])
def test_only_regular_files_are_opened(tmp_path, monkeypatch, make, message, suffix):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path(f"x.{suffix}")
    make(path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"x.{suffix}: {message}")


@pytest.mark.parametrize(
    "name, message",
    [
        ("/dev/zero", "/dev/zero: is a device; expected a file"),
        ("~nosuchuser/x.txt", "~nosuchuser/x.txt: the home folder ~nosuchuser is unknown"),
        ("x" * 300 + ".txt", "x" * 300 + ".txt: cannot be read (File name too long); shorten it"),
        ("a\0b.txt", r"'a\x00b.txt': cannot be the name of a file"),
        ("a\ud800.txt", r"'a\ud800.txt': cannot be the name of a file"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, name, message):
    with pytest.raises(DataError) as caught:
        survey(name, Reader(), tmp_path)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_folders_that_may_not_be_entered(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jvae.data.sources.os.stat", refuse)
    with pytest.raises(DataError, match=r"x.txt: cannot be read .*; check its permissions and"):
        survey("x.txt", Reader(), tmp_path)


@pytest.mark.parametrize("name", ["a.dat", "a.xlsx.gz", "a.zip", "corpus.en", "a.docx"])
def test_other_suffixes_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_text("a\n")
    with pytest.raises(
        DataError, match="files are not supported; expected one of .csv, .json, .jsonl"
    ):
        read(path)
    if not name.endswith(".gz"):
        assert texts(path, format="text") == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("a man\n".encode(encoding))
    with pytest.raises(DataError, match=r"a.txt: (is UTF-|looks like UTF-16 text|looks like bin)"):
        read(path, on_error="drop")


# JSON files, and the message after "t.json".
BAD_JSON = {
    "empty": ("", ": is empty; expected one array"),
    "no entries": ("[ ]", ":1: holds an empty array"),
    "object": ('{"text": "a"}', ":1: holds one JSON object; expected an array of strings"),
    "number": ("7", ":1: holds one JSON value; expected an array"),
    "lines": ('{"text": "a"}\n{"text": "b"}', ":1: holds several JSON values; name it .jsonl"),
    "cut": ('[\n"a",\n"b', ":3: not valid JSON (Unterminated string"),
    "open": ('["a"', ":1: not valid JSON (expected a comma, or the"),
    "trailing comma": ('["a",]', ":1: not valid JSON (Expecting value"),
    "no comma": ('["a"\n"b"]', ":2: not valid JSON (expected a comma"),
    "rest": ('["a"] x', ":1: not valid JSON (expected a comma, or the closing ] at the end"),
    "deep": ("\n" + "[" * 100_000, ":2: JSON nested too deeply"),
    "digits": ('["a",\n' + "1" * 5_000 + "]", ":2: not usable JSON (a number with thousands"),
    "surrogate": ('["a",\n"\\ud800"]', ":2: holds half of a surrogate pair"),
    "type": ('["a",\n3]', ":2: holds a JSON number; expected an object"),
    "bytes": ('["a\udcff"]', ": not valid UTF-8 (byte 0xff at column 4); a JSON file"),
}


@pytest.mark.parametrize("data, message", BAD_JSON.values(), ids=list(BAD_JSON))
def test_json_arrays_that_cannot_be_read(tmp_path, data, message):
    path = tmp_path / "t.json"
    path.write_bytes(data.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_parquet_that_cannot_be_read(tmp_path):
    table = pyarrow.table({"text": ["a", None], "n": [1, 2]})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    with pytest.raises(DataError, match="t.parquet:2: key 'text' holds a null; expected a string"):
        read(path)
    with pytest.raises(DataError, match="t.parquet: no column 'body'; it has 'text', 'n'. Choose"):
        read(path, text="body")
    assert read(path, on_error="drop", label="n") == [Example("a", "", "1")]
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], b"text\n"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a Parquet file that can be read .*; write it"):
            read(path)


def test_text_files_of_json_objects_are_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="holds JSON objects; name it .jsonl or set data.format"):
        read(path)
    assert texts(path, format="text") == ['{"text": "a"}']
    assert texts(path, format="jsonl") == ["a"]
    path.write_text("{ a }\n")
    assert texts(path) == ["{ a }"]


def test_lines_that_are_too_long_are_counted_with_every_remedy(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("a\n" + "b c d\n" * 3 + "\ne\n")
    with pytest.raises(DataError) as caught:
        read(path, max_words=2)
    assert str(caught.value) == (
        f"{path}:2: 3 words, over the limit of 2. 3 of 6 lines are too long: cut documents into "
        "sentences (data.sentences=true), raise data.max_words and data.max_chars, or leave such "
        "lines out (data.on_error=drop, with data.max_words as the limit in words)"
    )
