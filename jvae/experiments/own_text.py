"""Compares `--config=auto` with a default preset on texts of your own.

    python -m jvae.experiments.own_text --data=snli=snli/train.txt --data=captions=captions.txt
    ... --lines=1000,5000 --choices=auto,optimus     sizes, and configs to compare
    ... --choices=optimus:smollm2 --encoder=FOLDER --decoder=FOLDER     from published weights
    ... --dry_run                                    prints the commands

A file has one text per line, plain or .gz. Of its distinct lines, the first 500 are for validation,
the next 500 for the test, and those after them for training, so that all sizes of a corpus are
measured on the same text. Runs are ordinary ones in their own processes, and only the files
are set; a published decoder is trimmed to the training lines, and both stacks compute in float32.
Repeat the same command to complete what is missing and print the table again. Rows are stored, and
`python -m jvae.experiments.results write` puts them into RESULTS.md.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from jvae import config as configs
from jvae.data.sources import sha256
from jvae.errors import ConfigError, JvaeError
from jvae.experiments import results
from jvae.experiments.data import publish, text_lines
from jvae.experiments.entries import in_float32
from jvae.experiments.own_text_table import CHOICES, LINES, key, table
from jvae.experiments.results import Row
from jvae.experiments.steps import Step, complete
from jvae.runs.data import ROLES, SPLITS
from jvae.runs.metrics import read_lines
from jvae.runs.own_text import NAME as AUTO
from jvae.runs.workdir import write_text

OUT = Path("runs/own_text")
HELD_OUT = 500  # lines for validation, and as many for the test


class Job(NamedTuple):
    """A run: a config on the first lines of a corpus."""

    corpus: str
    lines: int
    choice: str
    words: list[str]  # arguments of `python -m jvae.main`
    folder: Path

    @property
    def step(self) -> Step:
        """The command that makes it."""
        return Step(self.folder.name, self.words, self.folder / "eval" / "test.txt")


def distinct(path: Path) -> Iterator[str]:
    """The lines of a file without repetitions and empty lines."""
    seen = set()
    for line in text_lines(path):
        text = line.strip()
        if text and text not in seen:
            seen.add(text)
            yield text


def prepare(name: str, path: Path, lines: Sequence[int], out: Path) -> None:
    """Writes the splits of a corpus, unless they exist.

    Raises: ConfigError if the file is missing, has too few lines, or is another one than before.
    """
    origin = out / f"{name}-source.sha256"
    if origin.is_file() and path.is_file() and origin.read_text("utf-8") != sha256(path):
        raise ConfigError(
            f"{out}: holds the lines of another file than {path} under the name {name}; give "
            "another name or another --out"
        )
    needed = {split: out / f"{name}-{split}.txt" for split in SPLITS[1:]}
    trains = {count: out / f"{name}-{count}.txt" for count in lines}
    if all(one.is_file() for one in (*needed.values(), *trains.values())):
        return
    if not path.is_file():
        raise ConfigError(f"--data={name}={path}: no such file; expected one text per line")
    most = len(needed) * HELD_OUT + max(lines)
    texts = list(islice(distinct(path), most))
    if len(texts) < most:
        raise ConfigError(
            f"{path}: {len(texts):,} distinct lines, but --lines={max(lines)} needs {most:,}: "
            f"{HELD_OUT} each for validation and test are left out of training"
        )
    write_text(origin, sha256(path))
    for place, target in enumerate(needed.values()):
        _write(target, texts[place * HELD_OUT : (place + 1) * HELD_OUT])
    for count, target in trains.items():
        _write(target, texts[len(needed) * HELD_OUT :][:count])


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _write(path: Path, texts: Sequence[str]) -> None:
    write_text(path, "".join(f"{text}\n" for text in texts))


def jobs(
    corpora: Sequence[str],
    lines: Sequence[int],
    choices: Sequence[str],
    out: Path,
    published: Mapping[str, Path],
) -> list[Job]:
    """Every run, corpus by corpus.

    Args:
      published: folders of published weights by role, for configs that start from them.
    Raises: ConfigError for an unknown config, a wrong size or a missing folder.
    """
    if not lines or min(lines) < 1:
        raise ConfigError("--lines: expected numbers of training lines, such as 1000,5000")
    starts = {choice: _roles(choice, published) for choice in choices}
    plan: list[Job] = []
    for word in corpora:
        name, equals, path = word.partition("=")
        if not (equals and path and name.isidentifier()):
            raise ConfigError(f"--data={word}: write --data=NAME=FILE, such as snli=train.txt")
        prepare(name, Path(path), lines, out)
        for count in lines:
            files = [f"{split}={out / f'{name}-{split}.txt'}" for split in SPLITS[1:]]
            files.insert(0, f"train={out / f'{name}-{count}.txt'}")
            for choice in choices:
                folder = out / f"{name}-{count}-{choice.replace(':', '_')}"
                words = [f"--config={choice}", *(f"--config.data.{one}" for one in files)]
                if roles := starts[choice]:
                    weights = out / f"{name}-{count}-weights"
                    train = _read(out / f"{name}-{count}.txt")
                    publish(weights, published["encoder"], published["decoder"], train)
                    values = in_float32(*roles)
                    values |= {f"init.{role}": str(weights / role) for role in roles}
                    words += [f"--config.{key}={value}" for key, value in values.items()]
                words.append(f"--workdir={folder}")
                plan.append(Job(name, count, choice, words, folder))
    return plan


def _roles(choice: str, published: Mapping[str, Path]) -> list[str]:
    """The stacks of a config that start from published weights."""
    if choice == AUTO:
        return []
    config = configs.load(choice)
    roles = [role for role in ROLES if config.init[role]]
    if roles and (missing := [role for role in ROLES if role not in published]):
        raise ConfigError(
            f"--choices={choice} starts from published weights; give --{missing[0]}=FOLDER"
        )
    return roles


def row_of(job: Job) -> Row:
    """The row of a finished run.

    `valid_neg_elbo` is that of the measured parameters, in nats per sentence; `minutes` those of
    training and evaluation, without start and compilation.

    Raises: ConfigError if it has not been evaluated.
    """
    result = results.row_of(job.folder)
    checks = {
        line["step"]: line["valid/neg_elbo"]
        for line in read_lines(job.folder / "metrics.jsonl")
        if "valid/neg_elbo" in line
    }
    metrics = result["metrics"]
    return {
        "corpus": job.corpus,
        "lines": job.lines,
        "choice": job.choice,
        "command": job.step.command,
        **{name: result[name] for name in ("commit", "hardware", "jax", "steps", "mi_saturated")},
        "collapse": result["collapse"],
        "mi": metrics.get("mi"),
        **{name: metrics[name] for name in ("bleu", "memorised", "memorised_test")},
        "valid_neg_elbo": checks[result["steps"]],
        "minutes": round((result["train_s"] + result["eval_s"]) / 60, 2),
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.experiments.own_text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", action="append", required=True, metavar="NAME=FILE", help="one text per line"
    )
    parser.add_argument("--lines", default=",".join(map(str, LINES)), help="training lines")
    parser.add_argument("--choices", default=",".join(CHOICES), help="configs to compare")
    for role in ROLES:
        parser.add_argument(f"--{role}", type=Path, help=f"folder of the published {role}")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of files and runs")
    parser.add_argument("--rows", type=Path, default=results.OWN_TEXT, help="file of the rows")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    try:
        words = [word for word in args.lines.split(",") if word]
        if not all(word.isdecimal() for word in words):
            raise ConfigError(f"--lines={args.lines}: expected numbers, such as 1000,5000")
        choices = [word for word in args.choices.split(",") if word]
        published = {role: folder for role in ROLES if (folder := getattr(args, role))}
        wanted = jobs(args.data, [int(word) for word in words], choices, args.out, published)
        if args.dry_run:
            print("\n".join(job.step.command for job in wanted))
            return 0
        return _run(wanted, args.out, args.rows)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(wanted: Sequence[Job], out: Path, rows: Path) -> int:
    jobs_by_name = {job.folder.name: job for job in wanted}

    def stored(step: Step) -> None:
        results.replace(rows, [row_of(jobs_by_name[step.name])], key)

    if code := complete([job.step for job in wanted], out, stored):
        return code
    keys = {(job.corpus, job.lines, job.choice) for job in wanted}
    print(f"\n{table([row for row in results.read_rows(rows) if key(row) in keys])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
