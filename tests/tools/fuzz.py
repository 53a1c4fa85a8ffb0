"""Hostile input by the thousand: every case ends in a right result or in one error message.

  python -m tests.tools.fuzz --n=2000 [--seed=0] [--only=text,configs,tokenizers,exports,runs]

A case is made of a valid file by a few random mutations. It counts as
  read      accepted, and equal to what a reference reader makes of the same bytes
  refused   one JvaeError with a one-line message that names the file
and anything else is a failure: another exception, a wrong result, or more than `LIMIT_S` seconds.
The cases are shared out among the kinds: configs, run folders, exports and tokenizer files have
files of their own. Add a kind by a function (seed, n) -> Counter and an entry of `_kinds`.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import logging
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow
from pyarrow import parquet

from jvae.data.formats import Reader, scan
from jvae.data.text_rules import BadLine, clean
from jvae.errors import JvaeError

T = TypeVar("T")
LIMIT_S = 20

_PIECES = (
    *"a1 é🎸.?,;:|'\"\\{}[]\t\n\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff\0",
    *("man plays", "the guitar", "  ", "...", "e.g.", "Mr. X", "日本", '""', "\\n", "null", "\r\n"),
)
_BYTES = (
    *(bytes([letter]) for letter in b'\xff\xc3\0\n\r",\t[]{}'),
    *(b"1" * 5_000, b"[" * 20_000, b'"' * 999, b"." * 20_000, b" " * 5_000, b"\\ud800", b"NaN"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\\u0000", b"\xed\xa0\x80"),
)


class Failure(AssertionError):
    """A case that ended in neither of the right ways."""


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises Failure in code that takes longer."""

    def stop(*_):
        raise Failure(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, cut, doubled, moved or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        to = min(at + rng.randrange(1, 20), len(changed))
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:to]
        elif kind == 2:
            changed[at:at] = changed[at:to]
        elif kind == 3:
            del changed[at:]
        else:
            changed[at:at] = rng.choice(_BYTES)
    return bytes(changed)


# --------------------------------------------------------------------------------------------------
# Text files.


def fuzz_text(seed: int, n: int) -> Counter[str]:
    """Corpus files of every format against the readers of the standard library and pyarrow.

    Returns: cases by outcome and format. Raises: Failure at the first that ends wrongly.
    """
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            rng = random.Random(f"text {seed} {i}")
            kind = rng.choice(list(_WRITE))
            data = mutate(rng, _WRITE[kind](_texts(rng)))
            packed = rng.random() < 0.1
            path = Path(folder, f"case.{kind}{'.gz' * packed}")
            stored = gzip.compress(data) if packed else data
            if packed and rng.random() < 0.3:
                stored = mutate(rng, stored)
                kind += ", damaged gzip"
            path.write_bytes(stored)
            drop = rng.random() < 0.5
            reader = Reader(
                on_error="drop" if drop else "raise",
                text="text" if kind[:3] in ("csv", "tsv") else "",
                sentences=rng.random() < 0.2,
            )
            outcome = check(partial(_read, path, reader), f"{seed} {i} ({kind})")
            if isinstance(outcome, str):
                tally[f"refused {kind}"] += 1
                if path.name not in outcome:
                    raise Failure(f"case {seed} {i}: the message names no file: {outcome}")
                continue
            tally[f"read {kind}"] += 1
            texts, reasons = outcome
            # Where a table continues after doubtful quotes is a guess, also in the reference.
            if not (reader.sentences or "damaged" in kind or "unbalanced quotes" in reasons):
                _compare(kind, data, texts, f"case {seed} {i} ({kind})")
    return tally


def check(call: Callable[[], T], name: str) -> T | str:
    """What a call returns, or the message of its error.

    Raises: Failure for any other end.
    """
    try:
        with deadline(LIMIT_S):
            return call()
    except JvaeError as error:
        if "\n" in str(error) or len(str(error)) > 2_000:
            raise Failure(f"case {name}: not one line: {str(error)[:500]!r}") from error
        return str(error)
    except Failure as failure:
        raise Failure(f"case {name}: {failure}") from failure
    except Exception as error:
        raise Failure(f"case {name}: {traceback.format_exc()}") from error


def _texts(rng: random.Random) -> list[str]:
    return [
        "".join(rng.choice(_PIECES) for _ in range(rng.randrange(1, 12)))
        for _ in range(rng.randrange(1, 8))
    ]


def _table(delimiter: str) -> Callable[[list[str]], bytes]:
    def write(texts: list[str]) -> bytes:
        out = io.StringIO(newline="")
        rows = [(str(i), text) for i, text in enumerate(texts)]
        csv.writer(out, delimiter=delimiter).writerows([("id", "text"), *rows])
        return out.getvalue().encode()

    return write


def _parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), out)
    return out.getvalue()


_WRITE: dict[str, Callable[[list[str]], bytes]] = {
    "txt": lambda texts: "\n".join(texts).encode(),
    "csv": _table(","),
    "tsv": _table("\t"),
    "jsonl": lambda texts: "\n".join(json.dumps({"text": text}) for text in texts).encode(),
    "json": lambda texts: json.dumps(texts, ensure_ascii=len(texts) % 2 == 0, indent=1).encode(),
    "parquet": _parquet,
}


def _read(path: Path, reader: Reader) -> tuple[list[str], set[str]]:
    """Texts, and why lines were dropped."""
    texts, reasons = [], set()
    for number, entry in scan(str(path), reader):
        if not isinstance(entry, BadLine):
            texts.append(entry.text)
        elif reader.on_error == "raise":
            raise JvaeError(f"{path}:{number}: {entry.detail}")
        else:
            reasons.add(entry.reason)
    return texts, reasons


def _compare(kind: str, data: bytes, texts: list[str], name: str) -> None:
    """Raises Failure unless the texts are what the reference reader has, in order; bad lines may
    be missing, but nothing is invented.
    """
    expected = [clean(text) for text in _reference(kind, data)]
    expected_texts = iter([text for text in expected if isinstance(text, str)])
    if not all(text in expected_texts for text in texts):
        raise Failure(f"{name}: {texts!r} is not part of {expected!r}")


def _reference(kind: str, data: bytes) -> list[str]:
    if kind == "parquet":
        column = parquet.read_table(io.BytesIO(data))["text"].cast(pyarrow.binary())
        return [(value or b"\0").decode("utf-8", "replace") for value in column.to_pylist()]
    text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    if kind == "txt":
        return text.split("\n")
    if kind == "json":
        return [_text_of(value) for value in json.loads(data.decode("utf-8-sig"))]
    if kind == "jsonl":
        return [_json(line) for line in text.split("\n")]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ",")
    header = [cell.strip() for cell in next(rows)]
    if "text" not in header:  # another delimiter
        return data.decode("utf-8", "replace").splitlines()
    place = header.index("text")
    return [row[place] for row in rows if len(row) > place]


def _json(line: str) -> str:
    try:
        return _text_of(json.loads(line.lstrip("\ufeff")))
    except (ValueError, RecursionError):
        return ""


def _text_of(value: object) -> str:
    entry = value.get("text") if isinstance(value, dict) else value
    return entry if isinstance(entry, str) else ""


# --------------------------------------------------------------------------------------------------

# Of 100 cases; loading a run costs a thousand times what reading a line does.
SHARES = {"text": 50, "configs": 25, "tokenizers": 15, "exports": 6, "runs": 4}


def _kinds() -> dict[str, Callable[[int, int], Counter[str]]]:
    from tests.tools import fuzz_configs, fuzz_folders  # they import this file

    return {
        "text": fuzz_text,
        "configs": fuzz_configs.fuzz_configs,
        "tokenizers": fuzz_folders.fuzz_tokenizers,
        "exports": fuzz_folders.fuzz_exports,
        "runs": fuzz_folders.fuzz_run_folders,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=2_000, help="cases in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"some of {', '.join(SHARES)}")
    flags = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    kinds = _kinds()
    names = flags.only.split(",") if flags.only else list(SHARES)
    total, failed = sum(SHARES[name] for name in names), False
    for name in names:
        try:
            tally = kinds[name](flags.seed, flags.n * SHARES[name] // total)
        except AssertionError as fault:  # Failure and Fault
            print(f"{name}: {fault}", file=sys.stderr)
            failed = True
            continue
        print(f"{name}: {sum(tally.values())} cases")
        for outcome, count in sorted(tally.items()):
            print(f"  {outcome:32} {count:6}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
