"""Compares one call on a list of sentences with one call per sentence: speed and memory of encoding
and decoding.

    python -m jvae.bench.bulk runs/optimus-tiny sentences.txt            a JSON line
    python -m jvae.bench.bulk runs/optimus-tiny sentences.txt --n=2000 --few=500 --alone=50

Targets: one call for `--n` sentences is at least five times as fast as one call per sentence, and
needs no more memory than one call for `--few`. Speeds are those of a second pass, after
compilation; the first is reported too. Every measurement runs in its own process, so that it has
its own memory peak.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jvae.bench.harness import peak_memory, surroundings
from jvae.cli import allocator
from jvae.errors import DataError, JvaeError

FASTER = 5.0  # least speedup of a list over one call per sentence
FLAT = 1.1  # largest allowed ratio of peak memory, many sentences over few


def measure(run: str, texts: Sequence[str], alone: bool) -> dict[str, Any]:
    """Seconds of two passes over the texts, whether their results agree, and the memory peak.

    Args:
      alone: one call per text; otherwise one for all.
    """
    from jvae.runs import loading

    vae = loading.load(run)
    parts = [[text] for text in texts] if alone else [list(texts)]

    def once() -> list[str]:
        return [text for part in parts for text in vae.decode(vae.encode(part))]

    (first_s, first), (second_s, second) = (_timed(once) for _ in range(2))
    return {
        "sentences": len(texts),
        "first_s": first_s,
        "second_s": second_s,
        "sentences_per_s": len(texts) / second_s,
        "peak_memory_bytes": peak_memory(),
        "same": first == second,
    }


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def compare(run: str, path: Path, n: int, few: int, alone: int) -> dict[str, Any]:
    """One record of all measurements. Raises: DataError if the file has too few sentences."""
    if (count := len(_sentences(path, n))) < n:
        raise DataError(f"{path}: {count} sentences; expected at least --n={n}")
    rows = {}
    for name, size in (("alone", alone), ("few", few), ("many", n)):
        words = [run, str(path), f"--n={size}", f"--part={'alone' if name == 'alone' else 'list'}"]
        command = [sys.executable, "-m", "jvae.bench.bulk", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise DataError(f"{' '.join(words)} failed with exit code {done.returncode}; see above")
        rows[name] = json.loads(done.stdout)
    return {
        "case": "bulk",
        **rows,
        "faster": rows["many"]["sentences_per_s"] / rows["alone"]["sentences_per_s"],
        "memory": rows["many"]["peak_memory_bytes"] / rows["few"]["peak_memory_bytes"],
        **surroundings(),
    }


def _sentences(path: Path, n: int) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [line.strip() for line in islice(file, n)]


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 1 if a target is missed, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m jvae.bench.bulk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", help="folder of a run, or an export")
    parser.add_argument("sentences", type=Path, help="a file, one sentence per line")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument(
        "--few", type=int, default=2_000, help="sentences of the second memory measurement"
    )
    parser.add_argument(
        "--alone", type=int, default=200, help="sentences encoded and decoded one per call"
    )
    parser.add_argument("--part", choices=("alone", "list"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # silences Orbax messages about checkpoints
    try:
        if args.part:
            texts = _sentences(args.sentences, args.n)
            print(json.dumps(measure(args.run, texts, args.part == "alone")))
            return 0
        record = compare(args.run, args.sentences, args.n, args.few, args.alone)
    except (JvaeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record, sort_keys=True))
    return 0 if record["faster"] >= FASTER and record["memory"] <= FLAT else 1


if __name__ == "__main__":
    allocator.restart()
    sys.exit(main(sys.argv[1:]))
