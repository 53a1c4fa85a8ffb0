"""What a text is: the same rules for every format of file and for the API."""

import csv
import gzip
import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from jvae.data.corpus import survey
from jvae.data.formats import Reader
from jvae.data.text_rules import BadLine, clean
from jvae.inference.checks import listed

# A text and what the rules make of it.
TEXTS = {
    "a  b": "a  b",
    "\ufeff\ufeff a\tb \u3000": "a\tb",
    " \ufeff a": "a",
    "a\ufeff b\ufeff": "a\ufeff b\ufeff",
    "a\nb": "a b",
    "a\n \ufeffb": "a b",
    "a \r\n\r\n b\r": "a b",
    "a\u2028b\x0cc\x85d \u2029\x0b e\x1cf": "a b c d e f",
    'say "yes", or; no|never': 'say "yes", or; no|never',
    '"quoted"': '"quoted"',
    "ünï 日本 🙂": "ünï 日本 🙂",
}
BAD = {"": "empty", " \u2028\ufeff\n": "empty", "a\0b": "NUL", "a\ud800": "invalid UTF-8"}


@pytest.mark.parametrize("text", TEXTS)
def test_rules(text):
    assert clean(text) == TEXTS[text]
    assert clean(TEXTS[text]) == TEXTS[text]  # nothing is left to do
    assert listed([text]) == [TEXTS[text]]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_text(text):
    fault = clean(text)
    assert isinstance(fault, BadLine) and fault.reason == BAD[text]


def table(texts, delimiter):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("id", "text"), *((i, text) for i, text in enumerate(texts))])
    return out.getvalue().encode()


def packed(texts):
    out = io.BytesIO()
    rows = [{"text": text, "id": i} for i, text in enumerate(texts)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS = {
    "csv": lambda texts: table(texts, ","),
    "tsv": lambda texts: table(texts, "\t"),
    "jsonl": lambda texts: "".join(json.dumps({"text": t}) + "\r\n" for t in texts).encode(),
    "ndjson": lambda texts: "\r".join(map(json.dumps, texts)).encode(),
    "json": lambda texts: json.dumps([{"text": t} for t in texts], indent=1).encode(),
    "parquet": packed,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("gz", [False, True])
def test_one_corpus_in_every_format(tmp_path, suffix, gz):
    data = WRITERS[suffix](list(TEXTS))
    path = tmp_path / f"corpus.{suffix}{'.GZ' * gz}"
    path.write_bytes(gzip.compress(data) if gz else data)
    assert list(survey(path, Reader(), tmp_path).texts()) == list(TEXTS.values())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_plain_text_has_lines_of_three_ends_alone(tmp_path, end):
    kept = [text for text in TEXTS if "\n" not in text and "\r" not in text]
    path = tmp_path / "corpus.txt"
    path.write_bytes(end.join(kept).encode())
    corpus = survey(path, Reader(), tmp_path)
    assert list(corpus.texts()) == [TEXTS[text] for text in kept]
    assert [located.line for located in corpus.examples()] == list(range(1, len(kept) + 1))


def test_ends_between_two_reads(tmp_path):
    """Lines about as long as one read of the file, cut before, in and after their ends."""
    path, small = tmp_path / "a.txt", Reader(max_chars=10, on_error="drop")  # reads of 105 bytes
    for size in (103, 104, 105, 106, 107, 209, 210, 211):
        for end in ("\r\n", "\r", "\n"):
            path.write_bytes(f"{'x' * size}{end}b{end}c".encode())
            corpus = survey(path, small, tmp_path)
            lines = [(located.line, located.example.text) for located in corpus.examples()]
            assert lines == [(2, "b"), (3, "c")]
