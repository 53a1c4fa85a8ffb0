"""Makes the stored runs: of every family a tiny run, interrupted and finished, and its export.

Made once, with the code of commit c66dd65, in the environment of `tests/conftest.py`:

    git checkout c66dd65 -- jvae configs && python tests/stored/make.py [NAME ...]

They prove that runs of older code open, so they are not made again when the code changes. NAME is a
family, or `optimus_text`, which is trained on the files of `text/` with a BPE tokenizer; the others
are trained on the embedded corpus, which is not stored. For each, `NAME.tar.xz` holds

    interrupted/  the run stopped by SIGTERM after step 7 of 12, between two log lines; the phases
                  of adavae and t5_vae have changed by then
    finished/     the same run resumed and evaluated
    export/       its export

and `NAME.json` what the code of that commit read out of them: checksums of the states, text, nats.
"""

import json
import lzma
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import conftest  # noqa: E402, F401  sets the environment, so before JAX
import jax  # noqa: E402
from stored_states import stored_state  # noqa: E402

import jvae  # noqa: E402
from jvae.cli.main import main  # noqa: E402
from jvae.data import grammar  # noqa: E402
from jvae.errors import WeightsError  # noqa: E402
from jvae.runs import metrics  # noqa: E402

SCRATCH = Path("/tmp/jvae")  # Orbax writes the folder's name into the files
LIMIT_BYTES = 3_000_000  # all files together
STOP_AFTER = 7
LINES = dict(train=300, valid=60, test=60)

STEPS = (
    "train.steps=12",
    "train.log_every=3",
    "train.check_every=3",
    "train.keep=1",
    "train.tensorboard=false",
    "optim.warmup_steps=1",  # stage1 of t5_vae has one step
    "evals.samples=2",
    "evals.sentences=12",
    "evals.generate=4",
    "evals.interpolations=3",
    "evals.interpolation_steps=3",
    "mesh.data=1",
)
ROWS = ("data.row_tokens=64", "data.batch_rows=4")
LATENT = "model.latent=4"
CHAIN = ("model.chain.steps=3", "model.chain.chains=4", "model.chain.chunk=4")


def transformer(side: str, **more: int) -> tuple[str, ...]:
    sizes = dict(layers=2, width=4, heads=2, mlp=8, unroll=1, vocab_multiple=8) | more
    return tuple(f"model.{side}.{name}={value}" for name, value in sizes.items())


def lstm(side: str) -> tuple[str, ...]:
    return (f"model.{side}.width=4", f"model.{side}.hidden=6")


OPTIMUS = (
    LATENT,
    *transformer("encoder", positions=64),
    *transformer("decoder", positions=64),
    *ROWS,
)
CONFIGS = {
    "adavae": (
        "adavae:tiny",
        LATENT,
        "model.adapter=4",
        "model.encoder_layers=2",
        *transformer("decoder", positions=64),
        *ROWS,
    ),
    "della": ("della:tiny", LATENT, *transformer("decoder", positions=64), *ROWS),
    "lm": ("lm:tiny", *transformer("decoder", positions=64), *ROWS),
    "lstm_lm": ("lm:lstm", *lstm("decoder"), "data.batch_rows=8"),
    "lstm_vae": ("lstm_vae:tiny", LATENT, *lstm("encoder"), *lstm("decoder"), "data.batch_rows=8"),
    "optimus": ("optimus:tiny", *OPTIMUS),
    "optimus_text": (
        "optimus:tiny",
        *OPTIMUS,
        *(f"data.{split}=text/{split}.txt" for split in LINES),
        "data.vocab=500",
        "model.encoder.positions=96",
        "model.decoder.positions=96",
    ),
    "sri": ("sri:tiny", LATENT, *lstm("decoder"), *CHAIN, "data.batch_rows=8"),
    "sri_transformer": (
        "sri:transformer",
        LATENT,
        *transformer("decoder", positions=64),
        *CHAIN,
        "data.batch_rows=8",
    ),
    "t5_vae": ("t5_vae:tiny", LATENT, *transformer("decoder", head=2), *ROWS),
}


def make(name: str, folder: Path) -> dict[str, Any]:
    """Writes the three folders and returns what they hold."""
    spec, *values = CONFIGS[name]
    interrupted, finished, export = (
        folder / part for part in ("interrupted", "finished", "export")
    )
    command = [f"--config={spec}", *(f"--config.{value}" for value in (*values, *STEPS))]
    plain = metrics.Writer.progress

    def progress(self: metrics.Writer, step: int) -> None:
        plain(self, step)
        if step == STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)

    metrics.Writer.progress = progress
    try:
        code = main([*command, f"--workdir={interrupted}"])
    finally:
        metrics.Writer.progress = plain
    assert code == 75, code
    assert list((interrupted / "ckpt/best").iterdir()), "no best checkpoint before the stop"
    (interrupted / "lock").unlink(missing_ok=True)
    shutil.copytree(interrupted, finished)
    assert main([*command, f"--workdir={finished}"]) == 0
    (finished / "lock").unlink(missing_ok=True)
    jvae.export(finished, export)

    texts = [s.text for s in grammar.corpus("test", 3)]
    expected = {
        "command": command,
        "states": {
            run_folder.name: stored_state(run_folder) for run_folder in (interrupted, finished)
        },
        "texts": texts,
        "k": 5,
    }
    for run_folder in (finished, export):
        try:
            vae = jvae.load(run_folder)
        except WeightsError as error:  # c66dd65 cannot read its own export of adavae
            print(f"{name}: {error}", flush=True)
            continue
        expected[run_folder.name] = {
            "sample": vae.sample(4),
            "nll": [float(nats) for nats in vae.nll(texts, k=5)],
        }
        if vae.encode(texts).size:
            expected[run_folder.name]["reconstruct"] = vae.reconstruct(texts)
    return expected


def pack(folder: Path, out: Path) -> None:
    """The same files give the same archive: sorted, without times or owners."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with (
        lzma.open(out, "wb", preset=9 | lzma.PRESET_EXTREME) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, path.relative_to(folder).as_posix(), filter=plain)


def write_text() -> None:
    (HERE / "text").mkdir(exist_ok=True)
    for split, count in LINES.items():
        lines = "".join(f"{s.text}\n" for s in grammar.corpus(split, count))
        (HERE / "text" / f"{split}.txt").write_text(lines, encoding="utf-8")


def run(names: list[str]) -> None:
    write_text()
    os.chdir(HERE)  # the files of `text/` are named relative to here
    for name in names or CONFIGS:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["JVAE_CACHE"] = f"{scratch}/cache"
            folder = SCRATCH / name
            shutil.rmtree(folder, ignore_errors=True)
            expected = make(name, folder)
            pack(folder, HERE / f"{name}.tar.xz")
            text = json.dumps(expected, indent=1, sort_keys=True) + "\n"
            (HERE / f"{name}.json").write_text(text, encoding="utf-8")
            print(f"{name}: {(HERE / f'{name}.tar.xz').stat().st_size:,} bytes", flush=True)
            jax.clear_caches()
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    assert size < LIMIT_BYTES, f"{size:,} bytes"


if __name__ == "__main__":
    run(sys.argv[1:])
