"""The table of exact match by text length, for latents of one vector and of several."""

from collections.abc import Mapping, Sequence
from typing import Any

from jvae.bench.speed import NOT_MEASURED

Row = Mapping[str, Any]
VECTORS, WIDTH = (1, 2, 4, 8), 32
PLAIN = "-plain"  # suffix of the unmodified preset


def names(vectors: Sequence[int] = VECTORS) -> list[str]:
    """The rows: for every number k of vectors the same total as one vector of `WIDTH` numbers, and
    k vectors of that width; before k = 1 the unmodified `optimus:tiny`.
    """
    pairs = [(k, width) for k in vectors for width in dict.fromkeys((WIDTH // k, WIDTH))]
    plain = [f"1x{WIDTH}{PLAIN}"] if 1 in vectors else []
    return [*plain, *(f"{k}x{width}" for k, width in pairs)]


def key(row: Row) -> str:
    """The key of a row; a newer row replaces an older one with the same key."""
    return row["name"]


def table(rows: Sequence[Row], wanted: Sequence[str] | None = None) -> str:
    """Markdown: exact match in % of every length bucket, Rec and KL; then where the rows were
    measured.
    """
    stored = {key(row): row for row in rows}
    first = next(iter(rows), None)
    ranges = ["all lengths"] if first is None else [_range(*ends) for ends in first["words"]]
    head = ["vectors x width", *(f"exact match %, {name}" for name in ranges), "all", "Rec", "KL"]
    out = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name in names() if wanted is None else wanted:
        row = stored.get(name)
        cells = [NOT_MEASURED] * (len(head) - 1) if row is None else _cells(row)
        out.append(f"| {name.replace(PLAIN, ', mean pooling')} | {' | '.join(cells)} |")
    places = [
        f"- {row['name']}: `{row['command']}`; {row['hardware']}, jax {row['jax']}, commit "
        f"{row['commit']}."
        for row in rows
    ]
    return "\n".join([*out, *([""] if places else []), *places])


def _range(low: int, high: int) -> str:
    return f"{low} to {high} words"


def _cells(row: Row) -> list[str]:
    shares = [*row["exact_match_by_length"], row["exact_match"]]
    cells = ["–" if share is None else f"{share:.1f}" for share in shares]
    return [*cells, f"{row['rec']:.2f}", f"{row['kl']:.2f}"]
