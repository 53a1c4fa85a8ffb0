"""`data.keep`: only the lines that hold a value."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from jvae.data.content import content
from jvae.data.corpus import reading_key, survey
from jvae.data.formats import Reader, scan
from jvae.errors import ConfigError, DataError

PAIRS = [("1", "a b", "c"), ("0", "d e", "f"), ("1", "g h", "i"), ("x", "j", "k")]
KEPT = ["c", "i"]
NAMES = ("label", "source", "text")


def write(folder, kind):
    path = folder / f"pairs.{kind}"
    if kind == "tsv":
        path.write_text("".join("\t".join(row) + "\n" for row in PAIRS))
    elif kind == "csv":
        path.write_text("".join(",".join(row) + "\n" for row in (NAMES, *PAIRS)))
    elif kind == "parquet":
        columns = {
            name: list(values) for name, values in zip(NAMES, zip(*PAIRS, strict=True), strict=True)
        }
        parquet.write_table(pyarrow.table(columns), path)
    else:
        rows = [dict(zip(NAMES, row, strict=True)) for row in PAIRS]
        rows = [row | {"label": int(row["label"])} if row["label"] != "x" else row for row in rows]
        lines = [json.dumps(row) for row in rows]
        text = "[" + ",\n".join(lines) + "]" if kind == "json" else "\n".join(lines)
        path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["tsv", "csv", "json", "jsonl", "parquet"])
def test_every_format_keeps_the_same_lines(tmp_path, kind):
    columns = dict(source="1", text="2", keep="0=1") if kind == "tsv" else {}
    reader = Reader(**(columns or dict(source="source", text="text", keep="label=1")))
    actual = survey([write(tmp_path, kind)], reader, tmp_path)
    assert [located.example for located in actual.examples()] == [
        ("c", "a b", ""),
        ("i", "g h", ""),
    ]
    assert len(actual) == 2 and not actual.dropped and list(actual.texts()) == KEPT
    assert f"data.keep={reader.keep} keeps 2 of 4 lines" in actual.notes[-1]
    assert actual.files[0].lines == 4 + (kind == "csv")


def test_several_values_and_columns(tmp_path):
    path = write(tmp_path, "tsv")
    for keep, want in (
        ("0=1,0=x", ["c", "i", "k"]),
        ("0=1,1=g h", ["i"]),
        (" 0 = 1 , -1=c", ["c"]),
        ("", ["c", "f", "i", "k"]),
    ):
        assert list(survey([path], Reader(text="2", keep=keep), tmp_path).texts()) == want


def test_what_is_left_out_is_never_at_fault(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("1\tshort\n0\t\n0\tfar too many words here\n")
    actual = survey([path], Reader(text="1", keep="0=1", max_words=2), tmp_path)
    assert list(actual.texts()) == ["short"]


def test_only_what_is_kept_is_the_content(tmp_path):
    few, all_lines = tmp_path / "few.tsv", write(tmp_path, "tsv")
    few.write_text("".join("\t".join(row) + "\n" for row in PAIRS if row[0] == "1"))
    columns = dict(source="1", text="2")
    kept = content(survey([all_lines], Reader(**columns, keep="0=1"), tmp_path), tmp_path)
    assert kept == content(survey([few], Reader(**columns), tmp_path), tmp_path)
    assert kept != content(survey([all_lines], Reader(**columns), tmp_path), tmp_path)
    # What was prepared before there was the option is found again.
    assert "keep" not in reading_key(Reader(), "a.tsv")
    assert reading_key(Reader(keep="0=1"), "a.tsv")["keep"] == "0=1"


def test_lines_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("1\ta\n" + "0\tb\n" * 60 + "1\tc\n" + "\xff" * 10)
    rows = scan(str(path), Reader(text="1", keep="0=1"))
    assert next(rows) == (1, ("a", "", ""))
    assert next(rows)[1].values == {"0": "0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep": "3=1"},
            r"pairs.tsv: data.keep=3, but its first line has 3 columns; expected 0 to",
        ),
        ({"keep": "y=1", "text": "2"}, r"pairs.tsv: data.keep=y, but its first line names no"),
        (
            {"keep": "0=7"},
            r"pairs.tsv: data.keep=0=7 leaves none of its 4 lines; they hold 0=1 \(2\), ",
        ),
    ],
)
def test_wrong_columns_and_values(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        survey([write(tmp_path, "tsv")], Reader(**options), tmp_path)


def test_files_without_columns(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("a\nb\n")
    with pytest.raises(DataError, match="data.keep=0=1 chooses lines by a column, which files of"):
        survey([path], Reader(keep="0=1"), tmp_path)
    with pytest.raises(DataError, match=r"has no key 'kind' \(data.keep\); its keys are 'label', "):
        survey([write(tmp_path, "jsonl")], Reader(keep="kind=1"), tmp_path)


@pytest.mark.parametrize("keep", ["0", "=1", "0=", "0=1,,", "0=1,2"])
def test_what_is_no_condition(keep):
    with pytest.raises(
        ConfigError, match="expected COLUMN=VALUE, such as 0=1, or several separated"
    ):
        Reader(keep=keep)
    with pytest.raises(ConfigError, match="data.header=false with data.keep=name: only a header"):
        Reader(keep="name=1", header="false")
