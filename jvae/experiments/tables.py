"""The comparison as Markdown, its figure, and the generated parts of RESULTS.md."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvae.errors import ConfigError
from jvae.experiments.entries import ENTRIES, SWEEPS
from jvae.experiments.results import END, NOT_MEASURED
from jvae.experiments.rows import Key, Row, faults_of, floor_of, key, over_floor
from jvae.runs.workdir import write_text

BEGIN = "<!-- comparison: "
OVER = "above its LM, paired"
IMAGES = Path("jvae/experiments/figures")  # figures of RESULTS.md
DASH = "–"  # not applicable, or withheld, as a note then explains
SHOWN_NOTES = ("loose", "withheld")  # keywords of the evaluator's notes that a table repeats
NAMES = {"snli": "SNLI", "ptb": "PTB"}
Rows = Sequence[Row]  # the seeds of one entry
Cell = Callable[[Rows], str]


def _shown(values: Sequence[float], errors: Sequence[float | None], digits: int) -> str:
    """One value with its standard error, or mean and standard deviation over seeds."""
    if len(values) > 1:
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
    se = f" ± {errors[0]:.{digits}f}" if errors[0] is not None else ""
    return f"{values[0]:.{digits}f}{se}"


def metric(name: str, digits: int = 2) -> Cell:
    """A cell for a metric; `{k}` stands for K."""

    def cell(rows: Rows) -> str:
        names = [name.format(k=row["k"]) for row in rows]
        values = [row["metrics"].get(key) for row, key in zip(rows, names, strict=True)]
        if any(value is None for value in values):
            measured = all(key in row["metrics"] for row, key in zip(rows, names, strict=True))
            return DASH if measured else NOT_MEASURED
        errors = [row["se"].get(key) for row, key in zip(rows, names, strict=True)]
        return _shown(values, errors, digits)

    return cell


def _mi(rows: Rows) -> str:
    return "≥ " * any(row["mi_saturated"] for row in rows) + metric("mi")(rows)


def _active(rows: Rows) -> str:
    """Active units out of all dimensions, and those of the baseline."""
    text = metric("au_0.01", 0)(rows)
    baselines = [row["baseline"].get("au_0.01") for row in rows]
    if text == DASH or any(control is None for control in baselines):
        return text
    return f"{text} ({max(baselines):g})"


def _collapsed(rows: Rows) -> str:
    """The evaluator's verdict; with several seeds, the number of collapsed ones."""
    verdicts = [row["metrics"].get("collapsed") for row in rows]
    if any(verdict is None for verdict in verdicts):
        return DASH
    if len(verdicts) == 1:
        return "**yes**" if verdicts[0] else "no"
    return f"**{sum(verdicts)} of {len(verdicts)}**" if any(verdicts) else "no"


def _over_floor(all_rows: Rows) -> Cell:
    """Paired difference to the language model in nats: the cost or gain of the latent."""

    def cell(rows: Rows) -> str:
        if ENTRIES[rows[0]["entry"]].floor is None:
            return DASH
        floors = [floor_of(row, all_rows) for row in rows]
        if any(floor is None for floor in floors):
            return NOT_MEASURED
        pairs = [over_floor(row, floor) for row, floor in zip(rows, floors, strict=True) if floor]
        values, errors = zip(*pairs, strict=True)
        return _shown(values, errors, 2)

    return cell


def _mean(name: str, scale: float, digits: int) -> Cell:
    return lambda rows: f"{statistics.fmean(row[name] for row in rows) / scale:,.{digits}f}"


COLUMNS: Sequence[tuple[str, Cell]] = (
    ("model", lambda rows: ENTRIES[rows[0]["entry"]].title),
    ("NLL_{k}", metric("nll_{k}")),
    ("-ELBO", metric("neg_elbo")),
    ("PPL_w", metric("ppl_w")),
    ("BPC", metric("bpc", 3)),
    ("Rec", metric("rec")),
    ("KL", metric("kl")),
    ("MI", _mi),
    ("AU (baseline)", _active),
    ("collapsed", _collapsed),
    ("exact match %", metric("exact_match", 1)),
    ("BLEU", metric("bleu", 1)),
    ("prior BLEU-4", metric("bleu_test", 1)),
    ("self-BLEU", metric("self_bleu", 1)),
    # SNLI and PTB have no labels; use `--mode=probe` for corpora that do.
    ("probe", lambda rows: DASH),
)
BRIEF = ("model", "NLL_{k}", "Rec", "KL", "AU (baseline)", "collapsed", "BLEU")
COSTS: Sequence[tuple[str, Cell]] = (
    ("model", lambda rows: ENTRIES[rows[0]["entry"]].title),
    ("computing parameters", lambda rows: f"{rows[0]['params']:,}"),
    ("all", lambda rows: f"{rows[0]['params_all']:,}"),
    ("updates", lambda rows: f"{rows[0]['updates']:,}"),
    ("sentences seen", lambda rows: f"{rows[0]['sentences']:,}"),
    ("training TFLOP", _mean("flops", 1e12, 1)),
    ("sentences/s", _mean("sentences_per_s", 1, 0)),
    (
        "train + eval s",
        lambda rows: f"{_mean('train_s', 1, 0)(rows)} + {_mean('eval_s', 1, 0)(rows)}",
    ),
    ("best checkpoint", lambda rows: ", ".join(row["weights"] for row in rows)),
    ("ESS", metric("ess", 1)),
    ("Rec gap", metric("rec_gap")),
    ("AU at 0.2", metric("au_0.2", 0)),
)


def _markdown(columns: Sequence[tuple[str, Cell]], groups: Sequence[Rows]) -> list[str]:
    k = groups[0][0]["k"]
    head = [title.format(k=k) for title, _ in columns]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(cell(rows) for _, cell in columns) + " |" for rows in groups]


def grouped(rows: Rows) -> dict[tuple[str, str], list[Rows]]:
    """The seeds of each entry by budget and data, in table order, without sweeps."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if not row["point"] and row["entry"] in ENTRIES:
            by_entry = groups.setdefault((row["budget"], row["data"]), {})
            by_entry.setdefault(row["entry"], []).append(row)
    return {
        group: [by_entry[name] for name in ENTRIES if name in by_entry]
        for group, by_entry in groups.items()
    }


def tables(rows: Rows) -> str:
    """Every table that has rows, with its costs, warnings and rate-distortion points."""
    parts = []
    wrong = faults_of(rows)
    for (budget, data), groups in grouped(rows).items():
        first = groups[0][0]
        sentences = f"{first['evaluated']:,} test sentences"
        parts += [f"### {NAMES.get(data, data)}, budget `{budget}`", ""]
        spread = (
            "mean ± standard deviation over seeds"
            if len(groups[0]) > 1
            else ("± standard error over sentences")
        )
        parts += [
            f"Nats per sentence; {sentences}, K = {first['k']}; {spread}.",
            "",
            *_markdown((*COLUMNS[:2], (OVER, _over_floor(rows)), *COLUMNS[2:]), groups),
            "",
            *_markdown(COSTS, groups),
            "",
        ]
        group_rows = [row for row in rows if (row["budget"], row["data"]) == (budget, data)]
        parts += _warnings(group_rows, wrong)
        parts += _sweep(group_rows)
    return "\n".join(parts).rstrip() or f"{NOT_MEASURED}: no rows yet."


def brief(rows: Rows) -> str:
    """A short SNLI table, for the largest budget with rows measured on two cores."""
    by_group = grouped(rows)
    measured = [group for group in (("cpu", "snli"), ("cpu-short", "snli")) if group in by_group]
    if not measured:
        return f"{NOT_MEASURED}: no rows yet."
    groups = by_group[measured[0]]
    columns = [column for column in COLUMNS if column[0] in BRIEF]
    lines = _markdown((*columns[:2], (OVER, _over_floor(rows)), *columns[2:]), groups)
    return "\n".join(lines)


def _warnings(rows: Rows, wrong: Mapping[Key, list[str]]) -> list[str]:
    lines = [
        f"- **Check** {_name(row)}: {'; '.join(wrong[key(row)])}."
        for row in rows
        if key(row) in wrong
    ]
    lines += [
        f"- Collapsed according to the evaluator, {_name(row)}: {'; '.join(row['collapse'])}."
        for row in rows
        if row["collapse"]
    ]
    lines += [
        f"- {_name(row)}: {note}"
        for row in rows
        for note in row["notes"]
        if any(word in note for word in SHOWN_NOTES)
    ]
    alone = [
        _name(row) for row in rows if ENTRIES[row["entry"]].floor and floor_of(row, rows) is None
    ]
    if alone:
        lines.insert(0, f"- No row of the matching language model for: {', '.join(alone)}.")
    elif not any(key(row) in wrong for row in rows):
        lines.insert(
            0,
            "- No row lies below its language model or another bound by more than 2 standard "
            "errors.",
        )
    return [*lines, ""]


def _name(row: Row) -> str:
    seed = f", seed {row['seed']}" if row["seed"] else ""
    return ENTRIES[row["entry"]].title + (f" ({row['point']})" if row["point"] else "") + seed


def _sweep(rows: Rows) -> list[str]:
    """Rate and distortion of the swept models; empty without a sweep."""
    if not any(row["point"] for row in rows):
        return []
    k = rows[0]["k"]
    head = ["model", "knob", "rate: KL", "distortion: Rec", "-ELBO", f"NLL_{k}", "MI", "AU"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, points in swept(rows).items():
        label = "τ" if name.startswith("sri") else "β"
        for row in points:
            cells = [metric(key)([row]) for key in ("kl", "rec", "neg_elbo", "nll_{k}")]
            cells += [_mi([row]), metric("au_0.01", 0)([row])]
            lines.append(
                f"| {ENTRIES[name].title} | {label} = {row['knob']:g} | {' | '.join(cells)} |"
            )
    return [*lines, ""]


def swept(rows: Rows) -> dict[str, list[Row]]:
    """The points of each swept entry by their knob, including its row in the table."""
    points: dict[str, list[Row]] = {}
    for name in SWEEPS:
        group = [r for r in rows if r["entry"] == name and r["metrics"].get("kl") is not None]
        if any(row["point"] for row in group):
            points[name] = sorted(group, key=lambda row: row["knob"])
    return points


def figure(rows: Rows) -> Any:
    """Rate (KL) against distortion (Rec) of the swept models, lines of equal -ELBO, as a
    `jvae.report.look.Picture`; None where none was swept.

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
            if row["entry"] in beside and not row["point"]
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


def commands(rows: Rows) -> str:
    """The command of every row, with place and time of the measurement."""
    lines = [
        f"- {_name(row)}, {NAMES.get(row['data'], row['data'])}, `{row['budget']}`: "
        f"`{row['command']}`; {row['hardware']}, jax {row['jax']}, commit {row['commit']}, "
        f"{row['date']}."
        for row in rows
    ]
    return "\n".join(lines) or f"{NOT_MEASURED}: no rows yet."


def figures(rows: Rows, folder: Path) -> list[str]:
    """Writes the figure of every swept budget and data set; returns Markdown to embed them."""
    lines = []
    for budget, data in grouped(rows):
        group_rows = [row for row in rows if (row["budget"], row["data"]) == (budget, data)]
        if picture := figure(group_rows):
            path = folder / f"rate-distortion-{budget}-{data}.svg"
            write_text(path, picture.svg.decode())
            title = f"{NAMES.get(data, data)}, budget `{budget}`"
            lines.append(f"![{picture.text}, {title}]({IMAGES.as_posix()}/{path.name})")
    return lines


def generated(rows: Rows, images: Sequence[str]) -> dict[str, str]:
    """The generated parts of RESULTS.md and README.md, by name."""
    return {
        "brief": brief(rows),
        "tables": tables(rows),
        "figures": "\n\n".join(images) or f"{NOT_MEASURED}: no sweep yet.",
        "commands": commands(rows),
    }


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Regenerates all marked parts of a document.

    Raises: ConfigError for an unknown name, or a mark without its end.
    """
    head, *rest = text.split(BEGIN)
    out = head
    for part in rest:
        name, close, body = part.partition(" -->")
        _, end, after = body.partition(END)
        if name not in parts or not close or not end:
            raise ConfigError(f"table {name.splitlines()[0]!r}: unknown, or without {END!r}")
        out += f"{BEGIN}{name} -->\n{parts[name]}\n{END}{after}"
    return out
