"""CSV and TSV: columns, quotes, headers, and that nothing in doubt becomes text silently."""

import pytest

from jvae.data.corpus import survey
from jvae.data.formats import Reader
from jvae.errors import ConfigError, DataError


def read(folder, data, name="t.csv", **options):
    path = folder / name
    path.write_bytes(data.encode())
    corpus = survey(path, Reader(**options), folder / "cache")
    return [located.example for located in corpus.examples()], corpus.notes


def texts(*args, **options):
    return [example.text for example in read(*args, **options)[0]]


def error_of(*args, **options):
    with pytest.raises(DataError) as caught:
        read(*args, **options)
    return str(caught.value)


def test_quotes_and_header(tmp_path):
    rows = 'label,text\n1,"a, b"\n0,"say ""c"""\n2,"two\r\nlines"\n'
    assert texts(tmp_path, rows) == ["a, b", 'say "c"', "two lines"]
    rows, notes = read(tmp_path, rows, label="label")
    assert [example.label for example in rows] == ["1", "0", "2"]
    assert notes == (
        f"{tmp_path}/t.csv: read as a table: the first line names the columns, text is column 1, "
        "label is column 0",
    )
    assert texts(tmp_path, 'label\ttext\n1\t"a ""b"""\n', "t.tsv", text="text") == ['a "b"']
    assert texts(tmp_path, '1\t"a\tb"\n0\tc "d"\n', "t.tsv") == ["a\tb", 'c "d"']


def test_lines_of_a_row_are_numbered_by_its_first(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text\n"a\nb"\n"c\n\nd"\ne\n')
    corpus = survey(path, Reader(), tmp_path)
    assert [(located.line, located.example.text) for located in corpus.examples()] == [
        (2, "a b"),
        (4, "c d"),
        (7, "e"),
    ]


@pytest.mark.parametrize(
    "data, options, want",
    [
        ("text,label\na,1\nb,0\n", {}, ["a", "b"]),  # a usual name
        ("foo,bar\n1,a\n2,b\n", {"text": "1"}, ["a", "b"]),  # numbers below a name
        (",text\n0,a\n1,b\n", {}, ["a", "b"]),  # an index without a name
        ("foo,bar\nc,a\nd,b\n", {}, ["bar", "a", "b"]),  # nothing says so
        ("foo,bar\nc,a\nd,b\n", {"header": "true", "text": "1"}, ["a", "b"]),
        ("foo,bar\nc,a\nd,b\n", {"text": "bar"}, ["a", "b"]),
        ("id,text\n1,a\n", {"header": "false"}, ["text", "a"]),
        ("1,a text\n2,b\n", {}, ["a text", "b"]),
        ("text\na\nb\n", {}, ["a", "b"]),
        ("text,text\nb,c\n", {}, ["text", "c"]),  # names differ
    ],
)
def test_header(tmp_path, data, options, want):
    assert texts(tmp_path, data, **options) == want
    assert texts(tmp_path, data.replace(",", "\t"), "t.tsv", **options) == want


@pytest.mark.parametrize("delimiter, spelt", [(";", "semicolons"), ("|", "bars"), ("\t", "tabs")])
def test_other_delimiters_of_csv(tmp_path, delimiter, spelt):
    data = 'label;text\n1;a, b\n0;"c;d"\n'.replace(";", delimiter)
    rows, notes = read(tmp_path, data)
    assert [example.text for example in rows] == ["a, b", f"c{delimiter}d"]
    assert f"columns at {spelt}" in notes[0] or delimiter == "\t"


def test_names_that_do_not_decide(tmp_path):
    assert "has the columns 'id', 'body'; set data.text to the one that" in error_of(
        tmp_path, "id,body\n1,a\n"
    )
    assert "names several such columns" in error_of(tmp_path, "a,a\n1,b\n", text="a")
    with pytest.raises(ConfigError, match="data.header=false with data.text=body"):
        Reader(header="false", text="body")


def test_quotes_in_doubt_are_faults(tmp_path):
    unclosed = '1\t" he said\n2\tb\n3\tc\n'
    said = error_of(tmp_path, unclosed, "t.tsv")
    assert ":1: a quote at the beginning of a field is not closed" in said
    assert "set data.quotes=false to treat quotes as" in said
    assert texts(tmp_path, unclosed, "t.tsv", quotes=False) == ['" he said', "b", "c"]
    # Closed three rows later: csv alone would join the rows.
    joined = '0\ta\n1\t" he said\n2\tb\n3\tsays "\n4\tc\n'.replace('says "', '"')
    assert ":2: a quote at the beginning of a field spans lines" in error_of(
        tmp_path, joined, "t.tsv"
    )
    assert texts(tmp_path, joined, "t.tsv", on_error="drop") == ["a", "c"]
    assert ":2: a quote at the beginning of a field is not" in error_of(tmp_path, 'text\n"a" b\n')
    assert texts(tmp_path, 'text\n"a" b\nc\n', on_error="drop") == ["c"]


@pytest.mark.slow
def test_a_field_may_be_long_but_not_endless(tmp_path):
    assert len(texts(tmp_path, f'text\n"{"x" * 300_000}"\n')[0]) == 300_000
    endless = 'text\na\n"' + "b\n" * 400_000
    assert ":3: a field has over 1000 characters" in error_of(tmp_path, endless, max_chars=1_000)


def test_bad_bytes_in_a_quoted_field(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'text\n"a\nb\xff"\nc\n')
    with pytest.raises(DataError, match=r":2: not valid UTF-8 \(byte 0xff at column 2"):
        survey(path, Reader(), tmp_path)
    corpus = survey(path, Reader(on_error="drop"), tmp_path)
    assert list(corpus.texts())[-1] == "c" and corpus.dropped["invalid UTF-8"] == 1
