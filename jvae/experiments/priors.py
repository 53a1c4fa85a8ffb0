"""Priors fitted to every tiny model of the embedded corpus, in one table.

    python -m jvae.experiments.priors
    ... --models=adavae:tiny,sri:tiny --kinds=flow     some models and kinds
    ... --dry_run                                      prints the commands

The command trains the models, fits the priors to them and measures both. Runs are ordinary ones in
their own processes; repeat the same command to complete what is missing and print the table again.
Rows are stored, and `python -m jvae.experiments.results write` puts them into RESULTS.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jvae import config as configs
from jvae.errors import JvaeError
from jvae.experiments import results
from jvae.experiments.priors_table import KINDS, SPECS, key, table
from jvae.experiments.results import Row
from jvae.experiments.steps import Step, complete
from jvae.fitted import FITTED

OUT = Path("runs/priors")
DRAWN = 1_000  # sentences from each prior


def plan(specs: Sequence[str], kinds: Sequence[str], out: Path) -> list[Step]:
    """Every training with its fits, in order. Raises: ConfigError for an unknown config or kind."""
    steps: list[Step] = []
    for spec in specs:
        run = out / configs.load(spec).name
        words = [f"--config={spec}", f"--workdir={run}"]
        steps.append(Step(run.name, words, run / "eval" / "test.txt"))
        for kind in kinds:
            FITTED[kind]
            words = [f"--workdir={run}", "--mode=prior", f"--prior.kind={kind}"]
            words.append(f"--config.evals.generate={DRAWN}")
            steps.append(Step(f"{run.name} {kind}", words, run / "eval" / f"prior-{kind}.txt"))
    return steps


def row_of(spec: str, kind: str, run: Path) -> Row:
    """The row of a fitted prior, with the metrics of its table.

    Raises: ConfigError if the run has not been evaluated.
    """
    about = results.row_of(run)
    path = run / "eval" / f"prior-{kind}.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return {
        "spec": spec,
        "kind": kind,
        **{name: about[name] for name in ("commit", "hardware", "jax")},
        "nll": next(name for name in metrics if name.startswith("nll_")),
        "metrics": {
            name: {column: m[column] for column in ("own", "fitted", "ceiling", "se")}
            for name, m in metrics.items()
        },
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.experiments.priors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default=",".join(SPECS), help="configs of the models")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of priors")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for runs")
    parser.add_argument("--rows", type=Path, default=results.PRIORS, help="file of the rows")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands without running them"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    specs, kinds = (
        [word for word in text.split(",") if word] for text in (args.models, args.kinds)
    )
    try:
        steps = plan(specs, kinds, args.out)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print("\n".join(step.command for step in steps))
        return 0
    if code := complete(steps, args.out):
        return code
    runs = {spec: args.out / configs.load(spec).name for spec in specs}
    rows = [row_of(spec, kind, run) for spec, run in runs.items() for kind in kinds]
    results.replace(args.rows, rows, key)
    print(f"\n{table(results.read_rows(args.rows))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
