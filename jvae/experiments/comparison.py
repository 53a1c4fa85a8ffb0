"""The comparison of all models on the same real data with the same budget, in one command.

    python -m jvae.experiments.comparison --data=snli=FOLDER --data=ptb=FOLDER --budget=cpu
    ... --models=lm,optimus --dry_run      only some rows; prints the commands
    ... --sweep                            rate against distortion
    ... --write                            RESULTS.md and README.md from the rows
    ... --budget=laptop --models=smollm2_lm,optimus_smollm2 --encoder=FOLDER --decoder=FOLDER
                                           from published weights, in Hugging Face's layout

FOLDER has train, valid and test as .txt or .txt.gz, one sentence per line. Files, tokenizer and
runs go to --out. Every run is an ordinary one in its own process; its command is printed and stored
with its row. Runs with a row are skipped and interrupted ones resume, so repeating the same command
completes what is missing and prints the same table. `--dry_run` creates the files that the commands
name and prints these commands.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from jvae import extras
from jvae.errors import ConfigError, JvaeError
from jvae.experiments import rows as comparison_rows
from jvae.experiments import tables
from jvae.experiments.data import prepare
from jvae.experiments.entries import BUDGETS, DEFAULT, ENTRIES, SWEEPS
from jvae.experiments.plan import OUT, Job, make_job, points
from jvae.experiments.results import read_rows
from jvae.experiments.steps import Runner
from jvae.runs.data import ROLES
from jvae.runs.workdir import write_text
from jvae.training.preemption import CODE

DOCUMENT, SUMMARY = Path("RESULTS.md"), Path("README.md")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.experiments.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--budget", default="cpu", help=", ".join(BUDGETS))
    parser.add_argument("--models", default=",".join(DEFAULT), help=f"some of {', '.join(ENTRIES)}")
    parser.add_argument(
        "--sweep", action="store_true", help=f"also sweep beta: {', '.join(SWEEPS)}"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for files and runs")
    parser.add_argument(
        "--rows", type=Path, default=comparison_rows.ROWS, help="file that stores the rows"
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the commands without running them",
    )
    for role in ROLES:
        parser.add_argument(
            f"--{role}",
            type=Path,
            help=f"folder of the published {role}, for models that start from one",
        )
    parser.add_argument(
        "--topology", default="v5e-256", help="slice, for a budget that only compiles"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write {DOCUMENT} and {SUMMARY} from the rows"
    )
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[Job]:
    """The requested runs, data set by data set.

    Raises: ConfigError for unknown or missing values.
    """
    if args.budget not in BUDGETS:
        raise ConfigError(f"--budget={args.budget}: expected one of {', '.join(BUDGETS)}")
    names = [name for name in args.models.split(",") if name]
    for name in names:
        if name not in ENTRIES:
            raise ConfigError(f"--models={name}: expected some of {', '.join(ENTRIES)}")
    budget, jobs = BUDGETS[args.budget], []
    for word in args.data:
        name, equals, folder = word.partition("=")
        if not (name.isidentifier() and equals and folder):
            raise ConfigError(f"--data={word}: write --data=NAME=FOLDER, such as snli=data/snli")
        data = prepare(name, Path(folder), budget, args.out / args.budget / name)
        if any(ENTRIES[entry].published for entry in names):
            if not (args.encoder and args.decoder):
                raise ConfigError(
                    "a model of --models starts from published weights: give --encoder=FOLDER and "
                    "--decoder=FOLDER"
                )
            data.publish(args.encoder, args.decoder)
        for entry in names:
            for point in ("", *(points(entry) if args.sweep else ())):
                jobs += [
                    make_job(args.budget, data, entry, seed, args.out, point)
                    for seed in (budget.seeds if not point else budget.seeds[:1])
                ]
    return jobs


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def missing(jobs: Sequence[Job], rows: Path) -> list[Job]:
    """The runs without a row for the same command and files."""
    stored = {comparison_rows.key(row): row["fingerprint"] for row in read_rows(rows)}
    return [job for job in jobs if stored.get(job.key) != job.fingerprint]


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """Completes what is missing; returns the exit code: 1 if a run failed, `CODE` if stopped."""
    compiled = BUDGETS[args.budget].compiled
    waiting = list(jobs) if compiled else missing(jobs, args.rows)
    runner, failed = Runner(), 0
    if waiting:
        runner.listen()
    for number, job in enumerate(waiting, 1):
        head = f"{number} of {len(waiting)}: {job.data}, {job.entry} {job.point} seed {job.seed}"
        log = job.folder.with_name(f"{job.folder.name}.log")
        command = [sys.executable, "-m", "jvae.main", *job.words, f"--workdir={job.folder}"]
        if compiled:
            command += ["--mode=compile", f"--topology={args.topology}"]
        begin = time.monotonic()
        print(f"{head}: {log}", flush=True)
        done = not compiled and (job.folder / "eval" / "test.txt").is_file()
        code = 0 if done or runner.stopped else runner.run(command, log)
        if runner.stopped or code == CODE:
            print("stopped; run the same command to resume", file=sys.stderr)
            return CODE
        if code:
            failed += 1
            print(f"failed with {code}: {_last_line(log)}", file=sys.stderr)
            continue
        if compiled:
            print(log.read_text(encoding="utf-8").strip())
        else:
            row = comparison_rows.row_of(job, args.out)
            comparison_rows.store(row, args.rows)
            nll = row["metrics"][f"nll_{row['k']}"]
            print(f"  NLL_{row['k']} {nll:.2f} after {time.monotonic() - begin:.0f} s", flush=True)
        jax.clear_caches()
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    if not args.data and not args.write:
        print("error: give --data=NAME=FOLDER, or --write; see --help", file=sys.stderr)
        return 2
    # This process only plans, counts and draws; accelerators are left to the runs.
    jax.config.update("jax_platforms", "cpu")
    code = 0
    try:
        jobs = plan(args)
        if args.dry_run:
            print("\n".join(job.command() for job in jobs))
            return 0
        extras.require("figures", "the comparison")
        code = run_all(jobs, args)
        rows = read_rows(args.rows)
        keys = {job.key for job in jobs}
        selection = [row for row in rows if comparison_rows.key(row) in keys]
        if selection:
            tables.figures(selection, args.out)
            print(f"\n{tables.tables(selection)}")
        if args.write:
            if not DOCUMENT.is_file():
                raise ConfigError(f"no {DOCUMENT} here; run --write where it is")
            parts = tables.generated(rows, tables.figures(rows, tables.IMAGES))
            for document in (DOCUMENT, SUMMARY):
                if document.is_file():
                    text = document.read_text(encoding="utf-8")
                    write_text(document, tables.filled(text, parts))
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
