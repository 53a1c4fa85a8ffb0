"""The table of fitted priors: samples and likelihood of each tiny model under its own prior, under
every fitted one, and from latents of its training posteriors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jvae.bench.speed import NOT_MEASURED

Row = Mapping[str, Any]
SPECS = ("optimus:tiny", "t5_vae:tiny", "adavae:tiny", "della:tiny", "sri:tiny")
KINDS = ("gaussian", "gmm", "flow", "diffusion")
OWN, CEILING = "own", "training posteriors"
# Metrics of `--mode=prior`, with title and decimals; the closed share of the gap follows the first.
SAMPLES = (
    ("grammatical", "grammatical %, T = 1", 1),
    ("greedy_grammatical", "greedy", 1),
    ("distinct_lines", "distinct", 0),
    ("memorised", "memorised %", 1),
    ("self_bleu", "self-BLEU", 1),
)
LEAST_GAP = 3.0  # percentage points; no share is shown for a smaller gap


def key(row: Row) -> tuple[str, str]:
    """The key of a row; a newer row replaces an older one with the same key."""
    return row["spec"], row["kind"]


def closed(metric: Mapping[str, float]) -> float | None:
    """Share of the gap between own prior and ceiling that the fitted prior closes, in %; None if
    the gap is below `LEAST_GAP`.
    """
    gap = metric["ceiling"] - metric["own"]
    return None if gap < LEAST_GAP else 100 * (metric["fitted"] - metric["own"]) / gap


def table(rows: Sequence[Row]) -> str:
    """Markdown: every model under each prior; then where the rows were measured."""
    stored = {key(row): row for row in rows}
    titles = [title for _, title, _ in SAMPLES]
    head = ["model", "prior", titles[0], "gap closed %", *titles[1:], "NLL lower by"]
    out = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for spec in SPECS:
        fitted = {kind: stored[spec, kind] for kind in KINDS if (spec, kind) in stored}
        first = next(iter(fitted.values()), None)
        out.append(_line(spec, OWN, first, "own"))
        out += [_line(spec, kind, fitted.get(kind), "fitted") for kind in KINDS]
        out.append(_line(spec, CEILING, first, "ceiling"))
    places = {
        row["spec"]: f"{row['hardware']}, jax {row['jax']}, commit {row['commit']}" for row in rows
    }
    notes = [f"- `{spec}`: {places[spec]}." for spec in SPECS if spec in places]
    return "\n".join([*out, *([""] if notes else []), *notes])


def _line(spec: str, prior: str, row: Row | None, column: str) -> str:
    if row is None:
        cells = [NOT_MEASURED] * (len(SAMPLES) + 2)
    else:
        metrics = row["metrics"]
        cells = [f"{metrics[name][column]:.{digits}f}" for name, _, digits in SAMPLES]
        fitted = column == "fitted"
        share = closed(metrics["grammatical"]) if fitted else None
        cells.insert(1, "–" if share is None else f"{share:.0f}")
        cells.append(gain(row) if fitted else "–")
    return f"| `{spec}` | {prior} | {' | '.join(cells)} |"


def gain(row: Row) -> str:
    """How much a fitted prior lowers NLL, in nats per sentence, with its paired standard error."""
    nll = row["metrics"][row["nll"]]
    if nll["fitted"] is None:
        return "no density"
    return f"{nll['own'] - nll['fitted']:.2f} ± {nll['se']:.2f}"
