"""Reading text: what is kept, what is refused, and that every refusal says where and why."""

import gzip
import hashlib

import pytest

from jvae.data.sources import lines_of, read_lines, scan
from jvae.errors import ConfigError, DataError


def write(folder, data, name="text.txt"):
    path = folder / name
    path.write_bytes(data)
    return path


def test_text_is_kept_raw_but_for_ends_and_blanks(tmp_path):
    path = write(tmp_path, "\ufeffa  man\r\n\tdeux élèves \n\ufeffthree\n\ufeff\ufefflast".encode())
    lines = read_lines(path)
    assert lines.text == ["a  man", "deux élèves", "three", "last"]
    assert lines.where(3) == f"{path}:4"
    assert lines.files[0].lines == 4
    assert lines.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert lines.warning is None


def test_gzip_and_several_files(tmp_path):
    plain = write(tmp_path, b"one\ntwo\n")
    packed = write(tmp_path, gzip.compress(b"three\n"), "more.txt.gz")
    lines = read_lines([plain, packed])
    assert lines.text == ["one", "two", "three"]
    assert lines.where(2) == f"{packed}:1"
    assert [one.lines for one in lines.files] == [2, 1]


BAD = {
    "utf8": (b"ok\nab\xff\n", "not valid UTF-8 (byte 0xff at column 3)", "invalid UTF-8"),
    "nul": (b"ok\na\0b\n", "holds a NUL character at column 2", "NUL"),
    "empty": (b"ok\n\nmore\n", "empty line; expected a sentence", "empty"),
    "blank": (b"ok\n \t\r\nmore\n", "empty line; expected a sentence", "empty"),
    "words": (b"ok\na b c d e f\n", "6 words, over the limit of 5", "too many words"),
    "chars": (b"ok\n" + b"x" * 50, "50 characters, over the limit of 40", "too many characters"),
    "huge": (b"ok\n" + b"x" * 999, "over 40 characters; expected one", "too many characters"),
    "old mac": (b"ok\na\rb\n", "holds a carriage return inside", "carriage return"),
}


@pytest.mark.parametrize("data, message, reason", BAD.values(), ids=list(BAD))
def test_bad_line_is_named_or_counted(tmp_path, data, message, reason):
    path = write(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read_lines(path, max_words=5, max_chars=40)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    assert "data.on_error=drop" in str(caught.value)
    lines = read_lines(path, "drop", max_words=5, max_chars=40)
    assert lines.text[0] == "ok"
    assert lines.dropped == {reason: 1}
    assert f"({reason}: 1)" in str(lines.warning)


def test_line_numbers_go_on_after_a_huge_line(tmp_path):
    path = write(tmp_path, b"y" * 5_000 + b"\nnext\n")
    lines = read_lines(path, "drop", max_chars=40)
    assert (lines.text, lines.where(0)) == (["next"], f"{path}:2")


def test_one_percent_of_drops_is_no_warning_but_more_is(tmp_path):
    at = read_lines(write(tmp_path, b"ok\n" * 99 + b"\n"), "drop")
    over = read_lines(write(tmp_path, b"ok\n" * 98 + b"\n"), "drop")
    assert at.warning is None
    assert "1 of 99 lines (1.0%) were dropped (empty: 1)" in str(over.warning)


WHOLE = {
    "empty": (b"", "a.txt", "is empty; expected a text file"),
    "empty gz": (b"", "a.txt.gz", "is empty; expected gzip text"),
    "gz of nothing": (gzip.compress(b""), "a.txt.gz", "is empty; expected a text file"),
    "truncated": (gzip.compress(b"abc\n" * 999)[:-9], "a.txt.gz", "damaged or truncated gzip file"),
    "garbled": (gzip.compress(b"abc\n")[:12] + b"\xff" * 20, "a.txt.gz", "gzip file"),
    "not gzip": (b"plain text\n", "a.txt.gz", "not a gzip file"),
    "hidden gzip": (gzip.compress(b"abc\n"), "a.txt", "is gzip data; give it a name that ends in"),
    "utf-16": ("a b\n".encode("utf-16"), "a.txt", "is UTF-16 text; convert it to UTF-8"),
}


@pytest.mark.parametrize("data, name, message", WHOLE.values(), ids=list(WHOLE))
@pytest.mark.parametrize("on_error", ["raise", "drop"])
def test_unusable_file(tmp_path, data, name, message, on_error):
    path = write(tmp_path, data, name)
    with pytest.raises(DataError, match=message) as caught:
        read_lines(path, on_error)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_and_folder(tmp_path):
    write(tmp_path, b"x\n", "train.txt.gz")
    with pytest.raises(DataError, match=r"train.txt: no such file; did you mean train.txt.gz\?"):
        read_lines(tmp_path / "train.txt")
    with pytest.raises(DataError, match="no such file; check the path"):
        read_lines(tmp_path / "nowhere" / "train.txt")
    with pytest.raises(DataError, match="is a folder; expected a text file"):
        read_lines(tmp_path)


def test_file_of_bad_lines_only(tmp_path):
    with pytest.raises(DataError, match="none of its 2 lines can be used"):
        read_lines(write(tmp_path, b"\n\n"), "drop")


def test_unknown_on_error():
    with pytest.raises(ConfigError, match="data.on_error='skip': expected 'raise' or 'drop'"):
        read_lines("any", "skip")


def test_scan_holds_one_line_at_a_time(tmp_path):
    path = write(tmp_path, b"one\n\xff\n")
    lines = scan(path)
    assert next(lines) == (1, "one")
    path.unlink()  # the open file is still read: nothing was collected first
    number, fault = next(lines)
    assert (number, fault.reason) == (2, "invalid UTF-8")


def test_sentences_in_memory():
    lines = lines_of(["a b", "c"], "embedded train")
    assert lines.where(1) == "embedded train:2"
    assert lines.files[0].sha256 == hashlib.sha256(b"a b\nc\n").hexdigest()
