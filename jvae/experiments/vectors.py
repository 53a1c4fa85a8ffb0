"""Exact match by text length, for latents of one vector and of several.

    python -m jvae.experiments.vectors                       on texts of 5 to 30 words
    ... --vectors=1,8 --set=train.steps=20000                some rows, with values of a config
    ... --data=FOLDER                                        train.txt, valid.txt, test.txt instead
    ... --dry_run                                            prints the commands

Every number k of vectors has two rows: k vectors of 32 / k numbers each, the same total as one
vector of 32, and k vectors of 32. All rows pool by queries, except the first for k = 1, which is
the unmodified `optimus:tiny`. Without --data the texts are concatenated sentences of the embedded
corpus, so that long texts are as regular as short ones. Runs are ordinary ones in their own
processes; repeat the same command to complete what is missing and print the table again. Rows are
stored, and `python -m jvae.experiments.results write` puts them into RESULTS.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError, JvaeError
from jvae.experiments import results, vectors_table
from jvae.experiments.results import Row
from jvae.experiments.steps import Step, complete
from jvae.experiments.vectors_table import WIDTH
from jvae.runs.workdir import write_text

SPEC, OUT = "optimus:tiny", Path("runs/vectors")
SHORTEST, LONGEST = 5, 30  # words per text
TEXTS = {"train": 40_000, "valid": 1_000, "test": 1_000}
VALUES = (
    *("data.tokenizer_kind=word", "data.vocab=0", "data.row_tokens=128"),
    *("evals.sentences=1000", "train.steps=3000", "train.check_every=1000"),
)


class Point(NamedTuple):
    """A row of the table. pool: empty keeps the pooling of `optimus:tiny`."""

    vectors: int
    width: int
    pool: str = "queries"

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"{self.vectors}x{self.width}" + ("" if self.pool else vectors_table.PLAIN)

    @property
    def values(self) -> tuple[str, ...]:
        """The config values that it sets."""
        pool = (f"model.pool={self.pool}",) if self.pool else ()
        return (f"model.vectors={self.vectors}", f"model.latent={self.width}", *pool)


def points(vectors: Sequence[int]) -> list[Point]:
    """The rows for these numbers of vectors. Raises: ConfigError for one that does not divide."""
    for k in vectors:
        if k < 1 or WIDTH % k:
            raise ConfigError(f"--vectors={k}: expected a divisor of {WIDTH}")
    plan: list[Point] = []
    for name in vectors_table.names(vectors):
        size, plain, _ = name.partition(vectors_table.PLAIN)
        count, _, width = size.partition("x")
        plan.append(Point(int(count), int(width), "" if plain else "queries"))
    return plan


def texts(split: str, count: int) -> list[str]:
    """Texts of random lengths between `SHORTEST` and `LONGEST` words; deterministic."""
    rng = np.random.default_rng(list(TEXTS).index(split))
    # This many sentences suffice for all texts, since each has several words.
    words = [s.text.split() for s in grammar.corpus(split, count * LONGEST // 4)]
    drawn, at = [], 0
    for length in rng.integers(SHORTEST, LONGEST + 1, count).tolist():
        text: list[str] = []
        while len(text) + len(words[at]) <= length or len(text) < SHORTEST:
            text += words[at]
            at += 1
        drawn.append(" ".join(text))
    return drawn


def prepare(folder: Path, counts: dict[str, int]) -> None:
    """Writes the texts of every split, unless they exist."""
    for split, count in counts.items():
        path = folder / f"{split}.txt"
        if not path.is_file():
            write_text(path, "".join(f"{text}\n" for text in texts(split, count)))


def step(point: Point, data: Path, out: Path, values: Sequence[str]) -> Step:
    """The run of a point. Raises: ConfigError for a value that the config rejects."""
    files = tuple(f"data.{split}={data / f'{split}.txt'}" for split in TEXTS)
    overrides = (*files, *VALUES, *point.values, *values)
    configs.apply_overrides(configs.load(SPEC), overrides)
    flags = [f"--config.{value}" for value in overrides]
    folder = out / point.name
    words = [f"--config={SPEC}", *flags, f"--workdir={folder}"]
    return Step(point.name, words, folder / "eval" / "test.json")


def row_of(point: Point, done: Step, folder: Path) -> Row:
    """The row of a finished run. Raises: ConfigError if it has not been evaluated."""
    result = results.row_of(folder)
    report = json.loads((folder / "eval" / "test.json").read_text(encoding="utf-8"))
    lengths = report["details"]["by_length"]
    return {
        "name": point.name,
        "command": done.command,
        **{name: result[name] for name in ("commit", "hardware", "jax", "steps", "updates")},
        **{name: result["metrics"][name] for name in ("exact_match", "rec", "kl")},
        "exact_match_by_length": lengths["exact_match_by_length"],
        "words": list(zip(lengths["words_from"], lengths["words_to"], strict=True)),
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.experiments.vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--vectors", default=",".join(map(str, vectors_table.VECTORS)), help="numbers of vectors"
    )
    parser.add_argument("--data", type=Path, help="folder with train.txt, valid.txt and test.txt")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for files and runs")
    parser.add_argument("--rows", type=Path, default=results.VECTORS, help="file of the rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands without running them"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    try:
        plan = points([int(word) for word in args.vectors.split(",") if word])
        data = args.data or args.out / "texts"
        steps = [step(point, data, args.out, args.set) for point in plan]
        if args.dry_run:
            print("\n".join(step.command for step in steps))
            return 0
        if args.data is None:
            prepare(data, TEXTS)
    except (JvaeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    by_name = {point.name: point for point in plan}

    def stored(done: Step) -> None:
        row = row_of(by_name[done.name], done, args.out / done.name)
        results.replace(args.rows, [row], vectors_table.key)

    if code := complete(steps, args.out, stored):
        return code
    print(f"\n{vectors_table.table(results.read_rows(args.rows), list(by_name))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
