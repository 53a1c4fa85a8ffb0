"""Compiles programs of published sizes for unavailable TPU slices: rows of BENCHMARKS.md.

    python -m jvae.bench.compiled                 all cases, an hour on two cores; needs libtpu
    python -m jvae.bench.compiled optimus:base    one case, replacing its older rows

Texts are those of the embedded corpus, rows and vocabularies have published sizes, so nothing has
to be downloaded. Nothing is trained or measured: see `jvae.cli.aot`.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jvae import config as configs
from jvae.cli import aot
from jvae.errors import ConfigError, JvaeError
from jvae.runs.workdir import write_text

ROWS = Path(__file__).with_name("compiled.jsonl")
TOPOLOGY = "v5e-8,v5e-256"
EVERY = ("data.encoder_tokenizer=", "data.decoder_tokenizer=", "decode.max_length=64")
GPT2 = ("model.decoder.vocab=50260", "data.batch_rows=64")
SRI = ("model.decoder.vocab=10000", "data.dec_row=64", "data.batch_rows=512")
# Overrides per config: sizes of the published tokenizers, a batch that keeps eight chips busy, and
# bfloat16 unless the config already uses it.
CASES: Mapping[str, Sequence[str]] = {
    "optimus:base": ("model.encoder.vocab=28996", *GPT2),
    "optimus:large": ("model.encoder.vocab=28996", *GPT2),
    "t5_vae:base": ("model.decoder.vocab=32100", "data.batch_rows=64"),
    "adavae:base": GPT2,
    "della:base": GPT2,
    "sri:ptb": (*SRI, "model.decoder.dtype=bfloat16"),
    "sri:transformer": (*SRI, "model.decoder.dtype=bfloat16"),
}


def words(case: str) -> list[str]:
    """The flags of a case."""
    values = [f"--config.{one}" for one in (*EVERY, *CASES[case])]
    return [f"--config={case}", "--mode=compile", f"--topology={TOPOLOGY}", *values]


def compile_case(case: str, path: Path = ROWS) -> None:
    """Replaces the rows of a case, each as soon as it is available.

    Raises: ConfigError without libtpu.
    """
    config, _ = configs.from_argv(words(case))
    assert config is not None
    order = [configs.load(name).name for name in CASES]
    kept = [row for row in _rows(path) if row["config"] != config.name]
    new: list[aot.Row] = []

    def keep(row: aot.Row) -> aot.Row:
        if row["virtual"]:
            raise ConfigError("libtpu is not installed, so there is nothing to keep")
        new.append(row | {"command": "python -m jvae.main " + " ".join(words(case))})
        rows = sorted(kept + new, key=lambda one: order.index(one["config"]))
        write_text(path, "".join(json.dumps(one, sort_keys=True) + "\n" for one in rows))
        return row

    with tempfile.TemporaryDirectory() as folder:  # must not contain a run
        rows = map(keep, aot.compile_for(config, Path(folder), TOPOLOGY))
        aot.show(rows, lambda text: print(text, flush=True))


def _rows(path: Path) -> list[aot.Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def table(path: Path = ROWS) -> str:
    """Markdown of all rows."""
    rows = _rows(path)
    if not rows:
        return "not measured"
    heads = ("config", "slice", "mesh", "rows x tokens", "program", "memory: state, peak")
    heads += ("model, all TFLOP", "collectives: number, sent", "arithmetic, memory, links ms")
    heads += ("time ms", "speed kept")
    out = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    out += ["| " + " | ".join(_cells(row, rows)) + " |" for row in rows]
    seen = {row["command"]: row for row in rows}
    out.append("")
    for command, row in seen.items():
        compiler = row.get("compiler") or f"libtpu {row['libtpu']}"  # the key of older rows
        out.append(
            f"- `{row['config']}`: `{command}`; jax {row['jax']}, {compiler}, commit "
            f"{row['commit']}."
        )
    return "\n".join(out)


def _cells(row: aot.Row, rows: Sequence[aot.Row]) -> list[str]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
    tokens = " + ".join(str(n) for n in row["row_tokens"].values())
    about = [f"`{row['config']}`", row["topology"], mesh, f"{row['batch_rows']} x {tokens}"]
    about.append(row["program"])
    flops = f"{row['model_flops'] / 1e12:.3g}, {row['flops'] / 1e12:.3g}"
    if row["peak_bytes"] is None:
        return [*about, f"does not fit: {row['needs']}", flops, "–", "–", "–", "–"]
    memory = f"{row['resident_bytes'] / 2**30:.2f}, {row['peak_bytes'] / 2**30:.2f} GiB"
    traffic = row["collectives"].values()
    sent = sum(sent for _, _, sent in traffic) / 2**20
    links = f"{sum(count for count, _, _ in traffic)}, {sent:.4g} MiB"
    bounds = row["bounds_ms"]
    worst = max(bounds, key=bounds.get)
    times = f"{bounds[worst]:.3g} ({worst}) to {sum(bounds.values()):.3g}"
    kept = aot.scaling(row, rows)
    shares = "–" if kept is None else " to ".join(f"{100 * one:.0f} %" for one in sorted(kept))
    each = ", ".join(f"{bound:.3g}" for bound in bounds.values())
    return [*about, memory, flops, links, each, times, shares]


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    try:
        unknown = sorted(set(argv) - set(CASES))
        if unknown:
            raise ConfigError(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
        for case in argv or CASES:
            compile_case(case)
    except JvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
