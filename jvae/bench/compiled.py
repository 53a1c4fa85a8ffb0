"""Compiles programs of published sizes for unavailable TPU slices and GPUs: rows of BENCHMARKS.md.

    python -m jvae.bench.compiled                     all cases; an hour for TPUs on two cores
    python -m jvae.bench.compiled optimus:base        one case, replacing its older rows
    python -m jvae.bench.compiled optimus:base/gpu    the same model on GPUs

Cases for TPUs need libtpu, those for GPUs jax[cuda13]; no device is needed.

Texts are those of the embedded corpus, rows and vocabularies have published sizes, so nothing has
to be downloaded. Nothing is trained or measured: see `jvae.cli.aot`.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jvae import config as configs
from jvae.bench import subjects
from jvae.cli import aot
from jvae.errors import ConfigError, JvaeError
from jvae.runs.workdir import write_text

ROWS = Path(__file__).with_name("compiled.jsonl")
TPU, GPU = "v5e-8,v5e-256", "h100-1,h200-1"
EVERY = ("data.encoder_tokenizer=", "data.decoder_tokenizer=")
LENGTH = {TPU: "decode.max_length=64", GPU: "decode.max_length=32"}
GPT2 = ("model.decoder.vocab=50260", "data.batch_rows=64")
SRI = ("model.decoder.vocab=10000", "data.dec_row=64", "data.batch_rows=512")
# A GPU trains on 64 k tokens per update, in four parts, as `jvae.bench` trains on one part.
ROWS_GPU = (
    *("data.row_tokens=64", "data.batch_rows=1024", "train.accumulate=4", "decode.batch=1024"),
    *subjects.ON_GPU,
)
# Overrides per case: sizes of the published tokenizers, a batch that keeps the chips busy, and
# bfloat16 unless the config already uses it.
CASES: Mapping[str, Sequence[str]] = {
    "optimus:base": ("model.encoder.vocab=28996", *GPT2),
    "optimus:large": ("model.encoder.vocab=28996", *GPT2),
    "t5_vae:base": ("model.decoder.vocab=32100", "data.batch_rows=64"),
    "adavae:base": GPT2,
    "della:base": GPT2,
    "sri:ptb": (*SRI, "model.decoder.dtype=bfloat16"),
    "sri:transformer": (*SRI, "model.decoder.dtype=bfloat16"),
    "optimus:base/gpu": ("model.encoder.vocab=28996", "model.decoder.vocab=50260", *ROWS_GPU),
}


def words(case: str) -> list[str]:
    """The flags of a case."""
    slices = topology(case)
    values = [f"--config.{one}" for one in (*EVERY, LENGTH[slices], *CASES[case])]
    config = case.removesuffix("/gpu")
    return [f"--config={config}", "--mode=compile", f"--topology={slices}", *values]


def topology(case: str) -> str:
    """The slices that a case is compiled for."""
    return GPU if case.endswith("/gpu") else TPU


def compile_case(case: str, path: Path = ROWS) -> None:
    """Replaces the rows of a case, each as soon as it is available.

    Raises: ConfigError without the compiler for its slices.
    """
    config, _ = configs.from_argv(words(case))
    assert config is not None
    slices = topology(case)
    order = [(configs.load(name.removesuffix("/gpu")).name, topology(name)) for name in CASES]

    def place(row: aot.Row) -> int:
        return order.index((row["config"], TPU if row["topology"] in TPU.split(",") else GPU))

    mine = order.index((config.name, slices))
    kept = [row for row in _rows(path) if place(row) != mine]
    new: list[aot.Row] = []

    def keep(row: aot.Row) -> aot.Row:
        if row["virtual"]:
            package = aot.Slice.of(row["topology"]).plugin.package
            raise ConfigError(
                f"{package} is not installed, so nothing can be compiled for its chips"
            )
        new.append(row | {"command": "python -m jvae.main " + " ".join(words(case))})
        rows = sorted(kept + new, key=place)
        write_text(path, "".join(json.dumps(one, sort_keys=True) + "\n" for one in rows))
        return row

    with tempfile.TemporaryDirectory() as folder:  # must not contain a run
        rows = map(keep, aot.compile_for(config, Path(folder), slices))
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
    heads += ("least time ms", "speed kept", "kernels, GB moved", "predicted ms, useful")
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
        return [*about, f"does not fit: {row['needs']}", flops, *["–"] * 6]
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
    counted = predicted = "–"
    if "kernels" in row:  # older rows have no such counts
        counted = f"{row['kernels']:,}, {row['traffic_bytes'] / 1e9:.3g}"
        predicted = f"{row['predicted_ms']:.3g}, {100 * row['useful_share']:.0f} %"
    return [*about, memory, flops, links, each, times, shares, counted, predicted]


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
