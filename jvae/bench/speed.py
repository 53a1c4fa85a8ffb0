"""Tables of benchmark records: as text for the terminal, and in Markdown for BENCHMARKS.md."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jvae.bench import CASES, harness

NOT_MEASURED = "not measured"

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, Callable[[Row], str]]]


def whole_run(seconds: float, like: Row) -> dict[str, Any]:
    """The record of a run of all cases: its total time."""
    kept = ("preset", "command", "commit", "versions", "allocator", "hardware")
    return {"case": "suite", "program": "whole", "config": "all", "seconds": seconds} | {
        name: like[name] for name in kept
    }


def key(row: Row) -> tuple[str, ...]:
    """The key of a record: a newer record replaces an older one with the same key."""
    device = row["hardware"]["device"]
    return (row["preset"], device, row["case"], row["config"], row["program"])


# --------------------------------------------------------------------------------------------------
# Cells.


def _of(name: str, shape: Callable[[Any], str]) -> Callable[[Row], str]:
    """A cell for one value of a record; a dash if the program does not have it."""

    def cell(row: Row) -> str:
        value = row.get(name)
        return "–" if value is None else shape(value)

    return cell


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def count(value: float) -> str:
    """A rate with three digits and thousands separators."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _spread(row: Row) -> str:
    low, high = row["call_ms_spread"]
    return f"± {50 * (high - low) / row['call_ms']:.0f} %"


def _rate(row: Row) -> str:
    return f"{count(row['useful_tokens_per_s'])} {_spread(row)}"


def _fill(*names: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        shares = [f"{100 * row['fill'][name]:.0f}" for name in names if name in row["fill"]]
        return " / ".join(shares) or "–"

    return cell


def _parts(row: Row) -> str:
    parts = row.get("parts_s", {})
    return ", ".join(f"{name} {value:.1f}" for name, value in parts.items())


MODEL = ("model", lambda row: f"`{row['config']}`")
PROGRAM = ("program", lambda row: row["program"])
TOKENS = ("useful tokens/s", _rate)
SENTENCES = ("sentences/s", _of("sentences_per_s", count))
FILL = ("fill enc / dec / slots, %", _fill("enc", "dec", "slots"))
MFU = ("share of peak, useful", _of("flops_share", _percent))
HFU = ("share of peak, all", _of("program_flops_share", _percent))
BANDWIDTH = ("share of bandwidth", _of("bytes_share", _percent))
COMPILE = ("compile s", _of("compile_s", _seconds))
MEMORY = ("peak MB", _of("peak_memory_bytes", lambda value: f"{value / 1e6:,.0f}"))
RATIO = ("ours / theirs", _of("ratio", lambda value: f"{value:.2f}"))


def _per_update(row: Row) -> str:
    return f"{row['call_ms'] / row.get('updates', 1):.1f}"


def _latents(row: Row) -> str:
    return str(row["shapes"]["latents"])


def _batches(row: Row) -> str:
    return count(1e3 * row["batches"] / row["call_ms"])


COLUMNS: Mapping[str, Columns] = {
    "train_step": (
        *(MODEL, TOKENS, SENTENCES, FILL, MFU, HFU),
        ("ms per update", _per_update),
        *(COMPILE, MEMORY),
    ),
    "data": (("lengths", PROGRAM[1]), ("batches/s", _batches), TOKENS, SENTENCES, FILL),
    "encode": (MODEL, TOKENS, SENTENCES, HFU, COMPILE, MEMORY),
    "decode": (
        *(MODEL, ("latents", _latents), TOKENS, HFU),
        ("kB per token", _of("bytes_per_token", lambda value: count(value / 1e3))),
        *(BANDWIDTH, COMPILE, MEMORY),
    ),
    "langevin": (
        *(MODEL, ("K", _of("k", str)), SENTENCES, ("spread", _spread)),
        ("over plain", _of("ratio", lambda value: f"{value:.2f}")),
        ("floor", _of("ratio_floor", lambda value: f"{value:.2f}")),
        ("over the floor", _of("over_floor", lambda value: f"{value:.2f}")),
        *(HFU, COMPILE, MEMORY),
    ),
    "iw_nll": (
        *(MODEL, PROGRAM, TOKENS, SENTENCES),
        ("over bare passes", _of("cost_ratio", lambda value: f"{value:.2f}")),
        ("PTB test file, s", _of("ptb_test_s", count)),
        COMPILE,
    ),
    "prior_sample": (MODEL, TOKENS, SENTENCES, HFU, BANDWIDTH, COMPILE, MEMORY),
    "prior_fit": (MODEL, PROGRAM, ("latents/s", _of("sentences_per_s", count)), COMPILE, MEMORY),
    "prior_latents": (
        *(MODEL, PROGRAM, ("latents/s", _of("sentences_per_s", count))),
        ("of decoding", _of("of_decoding", lambda value: f"{value:.3f}")),
        *(COMPILE, MEMORY),
    ),
    "startup": (
        MODEL,
        ("warm s", _of("seconds", lambda value: f"{value:.1f}")),
        ("cold s", _of("cold_s", lambda value: f"{value:.1f}")),
        ("where a warm start goes, s", _parts),
    ),
}
COLUMNS = COLUMNS | {"langevin_transformer": COLUMNS["langevin"]}
PEER_COLUMNS: Columns = (
    ("case", lambda row: row["case"]),
    MODEL,
    PROGRAM,
    TOKENS,
    ("fill enc / dec, %", _fill("enc", "dec")),
    MFU,
    COMPILE,
    ("compared with", lambda row: row["beside"]),
    RATIO,
)
TEXT: Columns = (
    ("case", lambda row: row["case"]),
    ("model", lambda row: row["config"]),
    PROGRAM,
    TOKENS,
    SENTENCES,
    ("ms per call", _of("call_ms", lambda value: f"{value:.1f}")),
    ("fill %", _fill("enc", "dec", "slots")),
    ("of peak", _of("flops_share", _percent)),
    ("all", _of("program_flops_share", _percent)),
    ("bandwidth", _of("bytes_share", _percent)),
    MEMORY,
    ("compile", _of("compile_s", _seconds)),
    ("ratio", _of("ratio", lambda value: f"{value:.2f}")),
    ("over floor", _of("over_floor", lambda value: f"{value:.2f}")),
)


# --------------------------------------------------------------------------------------------------
# Tables.


def text_table(rows: Sequence[Row]) -> str:
    """All records as a plain-text table."""
    lines = [[name for name, _ in TEXT]] + [[cell(row) for _, cell in TEXT] for row in rows]
    width = [max(len(line[i]) for line in lines) for i in range(len(TEXT))]
    return "\n".join("  ".join(map(str.ljust, line, width)).rstrip() for line in lines)


def _markdown(columns: Columns, cells: Sequence[Sequence[str]]) -> list[str]:
    head = [name for name, _ in columns]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(line) + " |" for line in cells]


@functools.cache
def _names(case: str, preset: str) -> list[str]:
    """Configs that a case measures under a preset."""
    return [subject.config.name for subject in CASES[case].subjects[preset]]


def preset_tables(rows: Sequence[Row], preset: str) -> str:
    """A table per case, including what was not measured."""
    parts, used = [], []
    for case, columns in COLUMNS.items():
        cells, before = [], len(used)
        for name in _names(case, preset):
            matches = [
                row
                for row in rows
                if (row["case"], row["config"], row["preset"]) == (case, name, preset)
                and "peer" not in row
            ]
            used += matches
            cells += [[cell(row) for _, cell in columns] for row in matches]
            if not matches:
                cells.append([f"`{name}`"] + [NOT_MEASURED] * (len(columns) - 1))
        if cells and len(used) == before:
            models = ", ".join(f"`{name}`" for name in _names(case, preset))
            parts.append(f"`{case}` ({models}): {NOT_MEASURED}")
        elif cells:
            parts.append("\n".join([f"`{case}`", "", *_markdown(columns, cells)]))
    return "\n\n".join([*parts, *origin(used)])


def peer_table(rows: Sequence[Row]) -> str:
    """The peer's programs, and how ours compare."""
    cells, used = [], []
    for preset in harness.PRESETS:
        for case in CASES:
            matches = [
                row
                for row in rows
                if (row["case"], row["preset"]) == (case, preset) and "peer" in row
            ]
            used += matches
            cells += [[preset, *(cell(row) for _, cell in PEER_COLUMNS)] for row in matches]
    columns = (("preset", lambda row: row["preset"]), *PEER_COLUMNS)
    if not cells:
        cells = [[NOT_MEASURED] * len(columns)]
    return "\n\n".join(["\n".join(_markdown(columns, cells)), *origin(used)])


def origin(rows: Sequence[Row]) -> list[str]:
    """Where rows were measured: machine, versions, commit, command; one line per combination."""
    lines = {}
    for row in rows:
        hardware, versions = row["hardware"], row["versions"]
        libraries = ", ".join(f"{k} {v}" for k, v in versions.items() if v and k != "jvae")
        if "allocator" in row:  # older rows have none
            libraries += f"; allocator: {row['allocator']}"
        lines[
            f"- `{row['command']}`; {hardware['device']}, {hardware['cores']} cores "
            f"{hardware['cpu']}; {libraries}; commit {row['commit']}."
        ] = None
    return ["\n".join(lines)] if lines else []
