"""The figures of the comparison: rate against distortion, and -ELBO over training compute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jvae.experiments.entries import ENTRIES
from jvae.experiments.rows import Row
from jvae.experiments.tables import NAMES, Rows, grouped, swept
from jvae.runs.workdir import write_text

IMAGES = Path("jvae/experiments/figures")  # figures of RESULTS.md
ABOVE = 1.6  # the axis of -ELBO ends here, as a multiple of the lowest final one


def rate_distortion(rows: Rows) -> Any:
    """Rate (KL) against distortion (Rec) of the swept models, lines of equal -ELBO, as a
    `jvae.report.look.Picture`; None if none was swept.

    Source: Alemi et al. 2018, "Fixing a Broken ELBO".
    """
    from jvae.report import look, palette

    series = swept(rows)
    if not series:
        return None
    with look.look():
        fig = look.figure(4.2, 6.5)
        ax = fig.subplots()
        points = [
            (row["metrics"]["kl"], row["metrics"]["rec"]) for s in series.values() for row in s
        ]
        ends = (0.0, 1.1 * max(rate for rate, _ in points))
        beside = [floor for name in series if (floor := ENTRIES[name].floor)]
        floors = {
            row["entry"]: row["metrics"]["neg_elbo"]
            for row in rows
            if row["entry"] in beside and not row["point"] and not row["seed"]
        }
        for name, nats in floors.items():
            below = nats < max(floors.values())
            ax.plot(ends, [nats, nats - ends[1]], color=palette.OTHER, linewidth=1, zorder=1)
            ax.annotate(
                ENTRIES[name].title,
                (ends[1], nats - ends[1]),
                (-4, -34) if below else (-4, 26),
                ha="right",
                textcoords="offset points",
                color=palette.FAINT,
                fontsize=8,
            )
        for color, (name, group) in zip(palette.COLORS, series.items(), strict=False):
            x, y = ([row["metrics"][key] for row in group] for key in ("kl", "rec"))
            ax.plot(x, y, "o-", color=color, label=ENTRIES[name].title)
            for row, rate, rec in zip(group, x, y, strict=True):
                label = f"{'τ' if name.startswith('sri') else 'β'} = {row['knob']:g}"
                ax.annotate(label, (rate, rec), (5, 5), textcoords="offset points", fontsize=8)
        ax.set_xlabel("rate: KL, nats per sentence")
        ax.set_ylabel("distortion: Rec, nats per sentence")
        ax.set_xlim(ends)
        ax.set_ylim(0, 1.1 * max(*floors.values(), *(rec for _, rec in points)))
        ax.legend()
        titles = ", ".join(ENTRIES[name].title for name in series)
        return look.picture(fig, f"Rate against distortion of {titles}")


def compute(rows: Rows) -> Any:
    """Validation -ELBO of each check over the training compute until then, as a
    `jvae.report.look.Picture`; None if no row has such checks. Of several seeds, the first.
    """
    from jvae.report import look, palette

    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row.get("curve") and not row["point"]:
            first.setdefault(row["entry"], row)
    if not first:
        return None
    with look.look():
        fig = look.figure(4.2, 6.5)
        ax = fig.subplots()
        for i, (name, row) in enumerate((n, first[n]) for n in ENTRIES if n in first):
            x, y = zip(*row["curve"], strict=True)
            ax.plot(
                x,
                y,
                # Lines beyond the palette repeat its colours with another style.
                "o-" if i < len(palette.COLORS) else "s--",
                color=palette.COLORS[i % len(palette.COLORS)],
                markersize=3,
                label=ENTRIES[name].title,
            )
        lowest = min(row["curve"][-1][1] for row in first.values())
        ax.set_xscale("log")
        ax.set_ylim(0.95 * lowest, ABOVE * lowest)
        ax.set_xlabel("training compute, TFLOP")
        ax.set_ylabel("validation -ELBO, nats per sentence")
        ax.legend(fontsize=8, ncols=2)
        titles = ", ".join(ENTRIES[name].title for name in ENTRIES if name in first)
        return look.picture(fig, f"Validation -ELBO over training compute of {titles}")


PICTURES: Sequence[tuple[str, Callable[[Rows], Any]]] = (
    ("rate-distortion", rate_distortion),
    ("compute", compute),
)


def write(rows: Rows, folder: Path) -> dict[str, list[str]]:
    """Writes the figures of every budget and data set; returns the Markdown that embeds them, by
    the name of the figure.
    """
    lines: dict[str, list[str]] = {name: [] for name, _ in PICTURES}
    for budget, data in grouped(rows):
        group_rows = [row for row in rows if (row["budget"], row["data"]) == (budget, data)]
        for name, draw in PICTURES:
            if picture := draw(group_rows):
                path = folder / f"{name}-{budget}-{data}.svg"
                write_text(path, picture.svg.decode())
                title = f"{NAMES.get(data, data)}, budget `{budget}`"
                lines[name].append(f"![{picture.text}, {title}]({IMAGES.as_posix()}/{path.name})")
    return lines
