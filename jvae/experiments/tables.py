"""The comparison as Markdown, and the generated parts of RESULTS.md."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from jvae.errors import ConfigError
from jvae.experiments.entries import ENTRIES, SWEEPS
from jvae.experiments.results import END, NOT_MEASURED
from jvae.experiments.rows import Key, Row, faults_of, floor_of, key, over_floor

BEGIN = "<!-- comparison: "
OVER = "above its LM, paired"
DASH = "–"  # not applicable, or withheld, as a note then explains
SHOWN_NOTES = ("loose", "withheld")  # keywords of the evaluator's notes that a table repeats
NAMES = {"snli": "SNLI", "ptb": "PTB", "yelp": "short Yelp"}
Rows = Sequence[Row]  # the seeds of one entry
Cell = Callable[[Rows], str]


def _shown(values: Sequence[float], errors: Sequence[float | None], digits: int) -> str:
    """The mean over seeds with the standard error over sentences. All seeds are measured on the
    same sentences, so the mean of their errors is an upper limit of the error of the mean.
    """
    known = [error for error in errors if error is not None]
    se = f" ± {statistics.fmean(known):.{digits}f}" if len(known) == len(errors) else ""
    return f"{statistics.fmean(values):.{digits}f}{se}"


def _spread(value: Callable[[Row], float | None], digits: int = 2) -> Cell:
    """A cell for the mean and the standard deviation over seeds."""

    def cell(rows: Rows) -> str:
        values = [one for row in rows if (one := value(row)) is not None]
        if len(values) < len(rows):
            return DASH
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    return cell


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


def _mi_and_baseline(rows: Rows) -> str:
    """MI in nats, and that of the baseline."""

    def shown(values: list[float]) -> str:
        return f"{max(statistics.fmean(values), 0.0):.1f}"  # estimates can be below 0

    return _beside(_mi(rows), rows, "mi", shown)


def _active(rows: Rows) -> str:
    """Active units out of all dimensions, and those of the baseline."""
    text = metric("au_0.01", 0)(rows)
    return _beside(text, rows, "au_0.01", lambda values: f"{max(values):g}")


def _beside(text: str, rows: Rows, name: str, shown: Callable[[list[float]], str]) -> str:
    """A cell with the baseline in parentheses, if every row has one."""
    baselines = [row["baseline"].get(name) for row in rows]
    if text == DASH or any(value is None for value in baselines):
        return text
    return f"{text} ({shown(baselines)})"


def _probe(rows: Rows) -> str:
    """Accuracy of a linear probe in %, and that of the untrained model; corpora with labels."""
    if not all("probe_label" in row["metrics"] for row in rows):
        return DASH
    text = metric("probe_label", 1)(rows)
    return _beside(text, rows, "probe_label", lambda values: f"{statistics.fmean(values):.1f}")


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
        pairs = [pair for row in rows if (pair := _difference(row, all_rows))]
        if len(pairs) < len(rows):
            return NOT_MEASURED
        values, errors = zip(*pairs, strict=True)
        return _shown(values, errors, 2)

    return cell


def _difference(row: Row, rows: Rows) -> tuple[float, float] | None:
    """NLL above that of its language model with the same seed, and its standard error."""
    floor = floor_of(row, rows)
    return None if floor is None else over_floor(row, floor)


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
    ("MI (baseline)", _mi_and_baseline),
    ("AU (baseline)", _active),
    ("collapsed", _collapsed),
    ("exact match %", metric("exact_match", 1)),
    ("BLEU", metric("bleu", 1)),
    ("prior BLEU-4", metric("bleu_test", 1)),
    ("self-BLEU", metric("self_bleu", 1)),
    ("probe", _probe),
)
SPREAD = (("-ELBO", "neg_elbo"), ("Rec", "rec"), ("KL", "kl"), ("MI", "mi"), ("BLEU", "bleu"))
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
        several = any(len(group) > 1 for group in groups)
        parts += [
            f"### {NAMES.get(data, data)}, budget `{budget}`",
            "",
            f"Nats per sentence; {first['evaluated']:,} test sentences, K = {first['k']}; "
            f"± standard error over sentences{'; means over seeds' if several else ''}.",
            "",
            *_markdown((*COLUMNS[:2], (OVER, _over_floor(rows)), *COLUMNS[2:]), groups),
            "",
            *_markdown(COSTS, groups),
            "",
        ]
        parts += _seeds(groups, rows)
        group_rows = [row for row in rows if (row["budget"], row["data"]) == (budget, data)]
        parts += _warnings(group_rows, wrong)
        parts += _sweep(group_rows)
    return "\n".join(parts).rstrip() or f"{NOT_MEASURED}: no rows yet."


def _seeds(groups: Sequence[Rows], rows: Rows) -> list[str]:
    """The spread between seeds, for the models with more than one; empty without any."""
    several = [group for group in groups if len(group) > 1]
    if not several:
        return []

    def over(row: Row) -> float | None:
        pair = _difference(row, rows)
        return pair and pair[0]

    def value(name: str) -> Callable[[Row], float | None]:
        return lambda row: row["metrics"].get(name.format(k=row["k"]))

    columns: Sequence[tuple[str, Cell]] = (
        COLUMNS[0],
        ("seeds", lambda rows: ", ".join(str(row["seed"]) for row in rows)),
        ("NLL_{k}", _spread(value("nll_{k}"))),
        (OVER, _spread(over)),
        *((title, _spread(value(name))) for title, name in SPREAD),
    )
    return ["Mean ± standard deviation over seeds:", "", *_markdown(columns, several), ""]


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
        seeds = {row["seed"] for row in group if row["point"]}
        if seeds:
            group = [row for row in group if row["seed"] in seeds]
            points[name] = sorted(group, key=lambda row: row["knob"])
    return points


def commands(rows: Rows) -> str:
    """The command of every row, with place and time of the measurement."""
    lines = [
        f"- {_name(row)}, {NAMES.get(row['data'], row['data'])}, `{row['budget']}`: "
        f"`{row['command']}`; {row['hardware']}, jax {row['jax']}, commit {row['commit']}, "
        f"{row['date']}."
        for row in rows
    ]
    return "\n".join(lines) or f"{NOT_MEASURED}: no rows yet."


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
