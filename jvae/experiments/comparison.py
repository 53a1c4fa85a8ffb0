"""The comparison of all models on the same real data with the same budget, in one command.

    python -m jvae.experiments.comparison --data=snli=FOLDER --data=ptb=FOLDER --budget=cpu
    ... --models=lm,optimus --dry_run      only some rows; prints the commands
    ... --sweep                            rate against distortion
    ... --seeds=0,1,2                      more seeds than those of the budget
    ... --priors=gaussian,gmm,flow         fits priors to every VAE, with the first seed
    ... --write                            RESULTS.md and README.md from the rows
    ... --budget=laptop --models=smollm2_lm,optimus_smollm2 --encoder=FOLDER --decoder=FOLDER
                                           from published weights, in Hugging Face's layout

FOLDER has train, valid and test as .txt or .txt.gz, one sentence per line, or as .tsv or .tsv.gz
with lines `label TAB sentence`; a linear probe of the labels is then measured too. Files, tokenizer
and runs go to --out. Every run is an ordinary one in its own process; its command is printed and
stored with its row. Runs with a row are skipped and interrupted ones resume, so repeating the same
command completes what is missing and prints the same table. `--dry_run` creates the files that the
commands name and prints these commands.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from jvae import extras
from jvae.errors import ConfigError, JvaeError
from jvae.experiments import learned_priors, pictures, results, tables
from jvae.experiments import rows as comparison_rows
from jvae.experiments.data import prepare
from jvae.experiments.entries import BUDGETS, DEFAULT, ENTRIES, SWEEPS
from jvae.experiments.plan import OUT, Job, make_job, points
from jvae.experiments.results import NOT_MEASURED, Row, read_rows
from jvae.experiments.steps import Runner, Step
from jvae.fitted import FITTED
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
    parser.add_argument("--seeds", default="", help="such as 0,1,2; default: those of the budget")
    parser.add_argument(
        "--priors", default="", help="kinds of priors to fit to every VAE, such as gmm,flow"
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
    names = _words(args.models)
    for name in names:
        if name not in ENTRIES:
            raise ConfigError(f"--models={name}: expected some of {', '.join(ENTRIES)}")
    for kind in _words(args.priors):
        FITTED[kind]
    if not all(word.isdecimal() for word in _words(args.seeds)):
        raise ConfigError(f"--seeds={args.seeds}: expected numbers, such as 0,1,2")
    budget, jobs = BUDGETS[args.budget], []
    seeds = tuple(int(word) for word in _words(args.seeds)) or budget.seeds
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
            data = data.publish(args.encoder, args.decoder)
        for entry in names:
            for point in ("", *(points(entry) if args.sweep else ())):
                jobs += [
                    make_job(args.budget, data, entry, seed, args.out, point)
                    for seed in (seeds if not point else seeds[:1])
                ]
    return jobs


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def missing(jobs: Sequence[Job], rows: Path) -> list[Job]:
    """The runs without a row for the same command and files."""
    stored = {comparison_rows.key(row): row["fingerprint"] for row in read_rows(rows)}
    return [job for job in jobs if stored.get(job.key) != job.fingerprint]


def run_all(jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """Completes what is missing; returns the exit code: 1 if a run failed, `CODE` if stopped."""
    if BUDGETS[args.budget].compiled:
        return _compile_all(jobs, args.topology)
    priors_file = learned_priors.rows_file(args.rows)
    fits = learned_priors.missing(
        learned_priors.wanted(jobs, _words(args.priors)), read_rows(priors_file)
    )
    fitted_to = {job for job, _ in fits}
    without_row = missing(jobs, args.rows)
    # A prior needs the files of its run, which may have a row from another machine.
    waiting = [
        job
        for job in jobs
        if job in without_row or (job in fitted_to and not job.steps[0].result.is_file())
    ]
    runner, failed = Runner(), 0
    if waiting or fits:
        runner.listen()
    for number, job in enumerate(waiting, 1):
        print(f"{number} of {len(waiting)}: {_title(job)}", flush=True)
        begin = time.monotonic()
        code = _complete(runner, job.steps, job.folder.parent)
        if code == CODE:
            return CODE
        if code:
            failed += 1
            continue
        row = comparison_rows.row_of(job, args.out)
        comparison_rows.store(row, args.rows)
        nll = row["metrics"][f"nll_{row['k']}"]
        print(f"  NLL_{row['k']} {nll:.2f} after {time.monotonic() - begin:.0f} s", flush=True)
        jax.clear_caches()
    for number, (job, kind) in enumerate(fits, 1):
        print(f"{number} of {len(fits)}: {_title(job)}, prior {kind}", flush=True)
        code = _complete(runner, [learned_priors.step(job, kind)], job.folder.parent)
        if code == CODE:
            return CODE
        if code:
            failed += 1
            continue
        results.replace(priors_file, [learned_priors.row_of(job, kind)], learned_priors.key)
    return 1 if failed else 0


def _title(job: Job) -> str:
    return f"{job.data}, {job.entry} {job.point} seed {job.seed}"


def _complete(runner: Runner, steps: Sequence[Step], logs: Path) -> int:
    """Runs the steps without a result until one fails; returns its exit code, `CODE` if stopped."""
    for step in steps:
        if step.result.is_file():
            continue
        log = logs / f"{step.name}.log"
        print(f"  {log}", flush=True)
        code = runner.run([sys.executable, "-m", "jvae.main", *step.words], log)
        if runner.stopped or code == CODE:
            print("stopped; run the same command to resume", file=sys.stderr)
            return CODE
        if code:
            print(f"failed with {code}: {_last_line(log)}", file=sys.stderr)
            return code
    return 0


def _compile_all(jobs: Sequence[Job], topology: str) -> int:
    """Compiles every run for a slice and prints its memory; nothing is trained."""
    failed = 0
    for number, job in enumerate(jobs, 1):
        print(f"{number} of {len(jobs)}: {_title(job)}", flush=True)
        words = [*job.steps[0].words, "--mode=compile", f"--topology={topology}"]
        log = job.folder.with_name(f"{job.folder.name}.log")
        failed += Runner().run([sys.executable, "-m", "jvae.main", *words], log) != 0
        print(log.read_text(encoding="utf-8", errors="replace").strip())
    return 1 if failed else 0


def generated(rows: Sequence[Row], prior_rows: Sequence[Row], images: Path) -> dict[str, str]:
    """The generated parts of RESULTS.md and README.md, by name; writes the figures to a folder."""
    drawn = pictures.write(rows, images)
    return {
        "brief": tables.brief(rows),
        "tables": tables.tables(rows),
        "priors": learned_priors.table(prior_rows) or f"{NOT_MEASURED}: no rows yet.",
        "figures": "\n\n".join(drawn["rate-distortion"]) or f"{NOT_MEASURED}: no sweep yet.",
        "compute": "\n\n".join(drawn["compute"]) or f"{NOT_MEASURED}: no row with its checks yet.",
        "commands": tables.commands(rows),
    }


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
            steps = [step for job in jobs for step in job.steps]
            fits = learned_priors.wanted(jobs, _words(args.priors))
            steps += [learned_priors.step(job, kind) for job, kind in fits]
            print("\n".join(step.command for step in steps))
            return 0
        extras.require("figures", "the comparison")
        code = run_all(jobs, args)
        rows = read_rows(args.rows)
        keys = {job.key for job in jobs}
        run_keys = {key[:4] for key in keys}
        selection = [row for row in rows if comparison_rows.key(row) in keys]
        prior_rows = read_rows(learned_priors.rows_file(args.rows))
        if selection:
            pictures.write(selection, args.out)
            print(f"\n{tables.tables(selection)}")
        if under := [row for row in prior_rows if learned_priors.key(row)[:4] in run_keys]:
            print(f"\n{learned_priors.table(under)}")
        if args.write:
            if not DOCUMENT.is_file():
                raise ConfigError(f"no {DOCUMENT} here; run --write where it is")
            parts = generated(rows, prior_rows, pictures.IMAGES)
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
