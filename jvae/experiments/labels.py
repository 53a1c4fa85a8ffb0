"""Label-conditional generation and transfer on labelled sentences, with published results.

    python -m jvae.experiments.labels --data=yelp_short    folder of train, valid and test
    ... --kinds=gaussian,flow --steps=20000                some priors, more updates
    ... --set=model.latent=64                              values of the model's config
    ... --dry_run                                          prints the commands

Files are .tsv or .tsv.gz with lines `label<TAB>sentence`. The command trains `optimus:tiny` on the
sentences without labels, and a language model of the same size, whose perplexity measures the
fluency of samples; fits a prior of each kind to the labelled latents; and measures all of them with
--mode=control. With short Yelp it took 24 minutes on one core. Runs are ordinary ones in their own
processes; repeat the same command to complete what is missing and print the table again. With all
kinds, the scores are stored, and `python -m jvae.experiments.results write` puts them into
RESULTS.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jvae import config as configs
from jvae.errors import ConfigError, JvaeError
from jvae.evals.card import aligned
from jvae.experiments import results
from jvae.experiments.labels_table import DIFFERENCES, PUBLISHED
from jvae.experiments.results import Row
from jvae.experiments.steps import Step, complete
from jvae.fitted import FITTED
from jvae.runs.data import SPLITS

SPEC, JUDGE, OUT = "optimus:tiny", "lm:tiny", Path("runs/labels")
KINDS = ("gaussian", "flow", "diffusion", "gan", "ctrl_gen")
DRAWS = ("--prior.label=true", "--prior.samples=2", "--prior.sentences=20000")
VALUES = (
    *("data.label=0", "data.vocab=4000", "data.batch_rows=6", "evals.preset=comparison"),
    "train.check_every=500",
)
STEPS = 2_500  # updates of the model, about one pass over 100,000 sentences
JUDGE_SHARE = 0.4  # share of these updates for the language model


def files(folder: Path) -> dict[str, Path]:
    """The file of every split. Raises: ConfigError if one is missing."""
    paths = {}
    for split in SPLITS:
        names = [folder / f"{split}{end}" for end in (".tsv", ".tsv.gz")]
        path = next((name for name in names if name.is_file()), None)
        if path is None:
            raise ConfigError(
                f"{folder}: no {split}.tsv or {split}.tsv.gz; expected label<TAB>text"
            )
        paths[split] = path
    return paths


def steps(
    data: Path, out: Path, kinds: Sequence[str], values: Sequence[str], updates: int = STEPS
) -> list[Step]:
    """All commands, in order.

    Raises: ConfigError for a missing file, an unknown kind or a value that the config does not
      accept.
    """
    for kind in kinds:
        FITTED[kind]
    splits = tuple(f"data.{split}={path}" for split, path in files(data).items())
    run, judge = out / "optimus", out / "lm"

    def trained(spec: str, folder: Path, updates: int, more: Sequence[str]) -> Step:
        overrides = (*splits, *VALUES, f"train.steps={updates}", *more)
        configs.apply_overrides(configs.load(spec), overrides)
        flags = [f"--config.{value}" for value in overrides]
        words = [f"--config={spec}", *flags, f"--workdir={folder}"]
        return Step(folder.name, words, folder / "eval" / "test.txt")

    on_run, judged = [f"--workdir={run}"], f"--config.evals.external={judge}"
    fewer = max(1, round(JUDGE_SHARE * updates))
    plan = [trained(JUDGE, judge, fewer, ()), trained(SPEC, run, updates, values)]
    for kind in kinds:
        words = [*on_run, "--mode=prior", f"--prior.kind={kind}", *DRAWS]
        plan.append(Step(f"prior {kind}", words, run / "eval" / f"prior-{kind}.txt"))
    names = ",".join(kinds)
    words = [*on_run, "--mode=control", f"--prior={names}", judged]
    result = run / "eval" / f"control-{names.replace(',', '-')}.txt"
    return [*plan, Step("control", words, result)]


def row_of(run: Path, result: Path) -> Row:
    """The row of a measured run. Raises: ConfigError if the run has not been evaluated."""
    about, scores = results.row_of(run), json.loads(result.read_text(encoding="utf-8"))
    return {
        **{name: about[name] for name in ("commit", "hardware", "jax", "steps")},
        **{name: scores[name] for name in ("generation", "transfer", "oracle")},
        **{name: scores[name] for name in ("each", "sentences")},
    }


def published() -> str:
    """The table of published results."""
    head = ["published", "accuracy", "BLEU test", "G", "self-BLEU"]
    rows = [[name, *(f"{value:.1f}" for value in row)] for name, row in PUBLISHED.items()]
    return "\n".join([*aligned([head, *rows]), "", DIFFERENCES])


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jvae.experiments.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled splits")
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help=f"kinds of priors, some of {', '.join(FITTED)}"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for runs")
    parser.add_argument("--rows", type=Path, default=results.LABELS, help="file of the scores")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of the model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands without running them"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    args = _arguments(argv)
    try:
        kinds = [kind for kind in args.kinds.split(",") if kind]
        if not kinds:
            raise ConfigError(f"--kinds is empty; expected some of {', '.join(FITTED)}")
        plan = steps(args.data, args.out, kinds, args.set, args.steps)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print("\n".join(step.command for step in plan))
        return 0
    if code := complete(plan, args.out):
        return code
    if kinds == list(KINDS):
        row = row_of(args.out / "optimus", plan[-1].result.with_suffix(".json"))
        results.store(args.rows, [row])
    print(f"\n{plan[-1].result.read_text(encoding='utf-8')}\n{published()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
