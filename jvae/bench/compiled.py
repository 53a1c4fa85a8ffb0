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
from typing import NamedTuple

from jvae import config as configs
from jvae.bench import subjects
from jvae.cli import aot
from jvae.errors import ConfigError, JvaeError
from jvae.runs.workdir import write_text

ROWS = Path(__file__).with_name("compiled.jsonl")
TPU, GPU, GPUS = "v5e-8,v5e-256", "h100-1,h200-1", "h100-8"
BYTES = ("data.encoder_tokenizer=", "data.decoder_tokenizer=")  # trained here; sizes are below
LENGTH = {TPU: "decode.max_length=64", GPU: "decode.max_length=32", GPUS: "decode.max_length=64"}
BERT, GPT2 = "model.encoder.vocab=28996", "model.decoder.vocab=50260"
# 64 k tokens per update, in four parts that fit into memory.
LARGE_BATCH = ("data.row_tokens=64", "data.batch_rows=1024", "train.accumulate=4")
ROWS_64 = "data.batch_rows=64"
SRI = (
    *("model.decoder.vocab=10000", "data.dec_row=64", "data.batch_rows=512"),
    "model.decoder.dtype=bfloat16",
)
SMOLLM2 = (
    *("init.encoder=", "init.decoder=", "model.encoder.vocab=30522", "model.decoder.vocab=49152"),
    *("model.encoder.dtype=bfloat16", "model.decoder.dtype=bfloat16"),
)
LLAMA = ("data.row_tokens=64", "data.batch_rows=512", "train.dropout_rng=rbg")
SHARDED = ("mesh.data=-1", "mesh.fsdp=8")


class CompileCase(NamedTuple):
    """A config, the slices that it is compiled for, and overrides: sizes of published tokenizers, a
    batch that keeps the chips busy, and bfloat16 unless the config already uses it.
    """

    config: str
    slices: str
    values: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The flags of its command."""
        values = (*BYTES, LENGTH[self.slices], *self.values)
        flags = [f"--config.{value}" for value in values]
        return [f"--config={self.config}", "--mode=compile", f"--topology={self.slices}", *flags]


def _llama(slices: str, suffix: str = "") -> dict[str, CompileCase]:
    """SmolLM2 and decoders of the sizes of Llama: frozen with low-rank additions, and all trained.

    The largest is sharded even if frozen, as its weights alone fill a chip.
    """
    frozen = {"smollm2": SMOLLM2, "llama1b": (), "llama8b": SHARDED}
    cases = {f"optimus:{name}": (*values, *LLAMA) for name, values in frozen.items()}
    cases |= {f"{name},train=all": values for name, values in cases.items()}
    return {name + suffix: CompileCase(name, slices, values) for name, values in cases.items()}


CASES: Mapping[str, CompileCase] = {
    "optimus:base": CompileCase(
        "optimus:base", TPU, (BERT, GPT2, *LARGE_BATCH, "train.dropout_rng=rbg")
    ),
    "optimus:large": CompileCase("optimus:large", TPU, (BERT, GPT2, ROWS_64)),
    "t5_vae:base": CompileCase("t5_vae:base", TPU, ("model.decoder.vocab=32100", ROWS_64)),
    "adavae:base": CompileCase("adavae:base", TPU, (GPT2, ROWS_64)),
    "della:base": CompileCase("della:base", TPU, (GPT2, ROWS_64)),
    "sri:ptb": CompileCase("sri:ptb", TPU, SRI),
    "sri:transformer": CompileCase("sri:transformer", TPU, SRI),
    **_llama(TPU),
    # `jvae.bench` trains on one of the four parts.
    "optimus:base/gpu": CompileCase(
        "optimus:base", GPU, (BERT, GPT2, *LARGE_BATCH, "decode.batch=1024", *subjects.ON_GPU)
    ),
    **_llama(GPUS, "/gpu"),
}


def compile_case(name: str, path: Path = ROWS) -> None:
    """Replaces the rows of a case, each as soon as it is available.

    Raises: ConfigError without the compiler for its slices.
    """
    case = CASES[name]
    config, _ = configs.from_argv(case.words)
    assert config is not None
    order = [(configs.load(entry.config).name, entry.slices) for entry in CASES.values()]

    def place(row: aot.Row) -> int:
        slices = next(topology for topology in LENGTH if row["topology"] in topology.split(","))
        return order.index((row["config"], slices))

    mine = order.index((config.name, case.slices))
    kept = [row for row in _rows(path) if place(row) != mine]
    new: list[aot.Row] = []

    def keep(row: aot.Row) -> aot.Row:
        if row["virtual"]:
            package = aot.Slice.of(row["topology"]).plugin.package
            raise ConfigError(f"{package} is not installed, so there is nothing to keep")
        # Writing the first row changes a file of the checkout; the code is still its commit's.
        commit = new[0]["commit"] if new else row["commit"]
        command = "python -m jvae.main " + " ".join(case.words)
        new.append(row | {"command": command, "commit": commit})
        rows = sorted(kept + new, key=place)
        write_text(path, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in rows))
        return row

    with tempfile.TemporaryDirectory() as folder:  # must not contain a run
        rows = map(keep, aot.compile_for(config, Path(folder), case.slices))
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
    shares = "–" if kept is None else " to ".join(f"{100 * share:.0f} %" for share in sorted(kept))
    bound_texts = ", ".join(f"{bound:.3g}" for bound in bounds.values())
    counted = predicted = "–"
    if "kernels" in row:  # older rows have no such counts
        counted = f"{row['kernels']:,}, {row['traffic_bytes'] / 1e9:.3g}"
        predicted = f"{row['predicted_ms']:.3g}, {100 * row['useful_share']:.0f} %"
    return [*about, memory, flops, links, bound_texts, times, shares, counted, predicted]


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
