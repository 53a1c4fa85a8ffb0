"""The table of `--config=auto` against a preset: one line per corpus, size and choice."""

from collections.abc import Mapping, Sequence
from typing import Any

from jvae.bench.speed import NOT_MEASURED

Row = Mapping[str, Any]
CORPORA = ("snli", "captions", "yahoo")  # corpora in the table: SNLI, Flickr8k, sentences of Yahoo
LINES = (1_000, 5_000)  # training lines of each; a corpus may have rows of other sizes
CHOICES = ("auto", "optimus")  # configs to compare; a corpus may have rows of others
COLUMNS = ("collapsed", "MI", "BLEU", "memorised", "validation -ELBO", "minutes")


def key(row: Row) -> tuple[str, int, str]:
    """The key of a row; a newer row replaces an older one with the same key."""
    return row["corpus"], row["lines"], row["choice"]


def table(rows: Sequence[Row]) -> str:
    """Markdown: every corpus at all sizes and with all choices; then the commands of the rows."""
    stored = {key(row): row for row in rows}
    corpora = list(dict.fromkeys([*CORPORA, *(row["corpus"] for row in rows)]))
    head = ("corpus", "lines", "`--config`", *COLUMNS)
    out = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for corpus in corpora:
        for count in sorted({*LINES, *(row["lines"] for row in rows if row["corpus"] == corpus)}):
            others = {row["choice"] for row in rows if key(row)[:2] == (corpus, count)}
            for choice in (*CHOICES, *sorted(others - set(CHOICES))):
                row = stored.get((corpus, count, choice))
                cells = [NOT_MEASURED] * len(COLUMNS) if row is None else _cells(row)
                out.append(f"| {corpus} | {count:,} | `{choice}` | {' | '.join(cells)} |")
    commands = [
        f"- {row['corpus']}, {row['lines']:,}, `{row['choice']}`: `{row['command']}`; "
        f"{row['hardware']}, jax {row['jax']}, commit {row['commit']}."
        for row in sorted(rows, key=lambda row: (corpora.index(row["corpus"]), key(row)))
    ]
    return "\n".join([*out, *([""] if commands else []), *commands])


def _cells(row: Row) -> list[str]:
    reasons = row["collapse"]
    mi = "–" if row["mi"] is None else f"{'≥ ' * row['mi_saturated']}{row['mi']:.2f}"
    return [
        "**yes**" if reasons else "no",
        mi,
        f"{row['bleu']:.1f}",
        f"{row['memorised']:.1f} % ({row['memorised_test']:.1f} %)",
        f"{row['valid_neg_elbo']:.2f}",
        f"{row['minutes']:.1f}",
    ]
