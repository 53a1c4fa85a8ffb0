"""Priors fitted to the models of the comparison: the commands, their rows, and the table."""

from collections.abc import Sequence
from pathlib import Path

from jvae.experiments import priors
from jvae.experiments.entries import ENTRIES
from jvae.experiments.plan import Job
from jvae.experiments.priors_table import CEILING, OWN, gain
from jvae.experiments.results import Row
from jvae.experiments.steps import Step
from jvae.experiments.tables import NAMES

# Metrics of `--mode=prior` with title and decimals; {k} stands for K.
COLUMNS = (
    ("nll_{k}", "NLL_{k}", 2),
    ("neg_elbo", "-ELBO", 2),
    ("kl", "KL", 2),
    ("bleu_test", "prior BLEU-4", 1),
    ("self_bleu", "self-BLEU", 1),
)
Key = tuple[str, str, str, int, str]


def key(row: Row) -> Key:
    """The key of a row; a newer row replaces an older one with the same key."""
    return row["budget"], row["data"], row["entry"], row["seed"], row["kind"]


def wanted(jobs: Sequence[Job], kinds: Sequence[str]) -> list[tuple[Job, str]]:
    """Every fit: all kinds for the first seed of each model with a latent, without sweeps."""
    first: dict[tuple[str, str], Job] = {}
    for job in jobs:
        if ENTRIES[job.entry].floor and not job.point:
            first.setdefault((job.data, job.entry), job)
    return [(job, kind) for job in first.values() for kind in kinds]


def missing(fits: Sequence[tuple[Job, str]], rows: Sequence[Row]) -> list[tuple[Job, str]]:
    """The fits without a row for the same run."""
    stored = {key(row): row["fingerprint"] for row in rows}
    return [
        (job, kind)
        for job, kind in fits
        if stored.get((job.budget, job.data, job.entry, job.seed, kind)) != job.fingerprint
    ]


def step(job: Job, kind: str) -> Step:
    """The command that fits a prior to a finished run and measures it."""
    words = [f"--workdir={job.folder}", "--mode=prior", f"--prior.kind={kind}"]
    return Step(f"{job.folder.name}-{kind}", words, job.folder / "eval" / f"prior-{kind}.txt")


def row_of(job: Job, kind: str) -> Row:
    """The row of a fitted prior. Raises: ConfigError if the run has not been evaluated."""
    row = priors.row_of(job.entry, kind, job.folder)
    del row["spec"]
    about = dict(budget=job.budget, data=job.data, entry=job.entry, seed=job.seed)
    return row | about | {"fingerprint": job.fingerprint}


def table(rows: Sequence[Row]) -> str:
    """Markdown: every model under its own prior, under each fitted one, and from latents of its
    training posteriors; a section per budget and data set.
    """
    parts: list[str] = []
    for budget, data in dict.fromkeys((row["budget"], row["data"]) for row in rows):
        group = [row for row in rows if (row["budget"], row["data"]) == (budget, data)]
        k = group[0]["nll"].removeprefix("nll_")
        titles = [title.format(k=k) for _, title, _ in COLUMNS]
        head = ["model", "prior", titles[0], "lower by, paired", *titles[1:]]
        parts += [
            f"### Learned priors, {NAMES.get(data, data)}, budget `{budget}`",
            "",
            f"| {' | '.join(head)} |",
            "|" + " --- |" * len(head),
        ]
        for name in (name for name in ENTRIES if any(row["entry"] == name for row in group)):
            fitted = {row["kind"]: row for row in group if row["entry"] == name}
            first = next(iter(fitted.values()))
            parts.append(_line(first, OWN, "own"))
            parts += [_line(row, kind, "fitted") for kind, row in fitted.items()]
            parts.append(_line(first, CEILING, "ceiling"))
        parts.append("")
    return "\n".join(parts).rstrip()


def _line(row: Row, prior: str, column: str) -> str:
    k = row["nll"].removeprefix("nll_")
    cells = []
    for name, _, digits in COLUMNS:
        value = row["metrics"].get(name.format(k=k), {}).get(column)
        cells.append("–" if value is None else f"{value:.{digits}f}")
    cells.insert(1, gain(row) if column == "fitted" else "–")
    return f"| {ENTRIES[row['entry']].title} | {prior} | {' | '.join(cells)} |"


def rows_file(rows: Path) -> Path:
    """The file of these rows, next to that of the comparison."""
    return rows.with_name(f"{rows.stem}_priors.jsonl")
