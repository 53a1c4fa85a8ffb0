"""What each `--mode` of the command line does."""

import sys
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvae import ahead, evaluation, loading, probing, run, workdir
from jvae import sweep as sweeps
from jvae import train as training
from jvae.api import Params
from jvae.errors import CheckpointError, ConfigError
from jvae.parallel import mesh as meshes
from jvae.parallel import processes
from jvae.stop import Stop


def train(config: ConfigDict, folder: Path) -> None:
    """Trains, or goes on training, then evaluates the best checkpoint on the test split.

    Raises: Stopped after SIGTERM or SIGINT, once the state is saved.
    """
    table = folder / "eval" / "test.txt"
    if table.is_file():
        if processes.first():
            workdir.claim(folder, config)
        print(f"{folder} is finished; --mode=eval measures it again\n\n{table.read_text()}", end="")
        return
    with Stop() as stop, workdir.Lock(folder) as lock:
        done = training.train(config, folder, stop, lock)
        report = evaluation.evaluate(done.run, done.mesh, done.params, done.step)
        _show(report.table(), folder)


def sweep(
    config: ConfigDict, spec: list[str], axes: list[str], folder: Path, dry_run: bool
) -> None:
    """Trains a run for every combination of values, or prints their commands."""
    made = sweeps.points(config, axes)
    if dry_run:
        print("\n".join(sweeps.launch_lines(spec, made, folder)))
        return
    print(f"\n{sweeps.run(config, made, folder, train)}\n\nFiles: {folder}")


def evaluate(config: ConfigDict, folder: Path) -> None:
    """Measures the best checkpoint of a run on its test split."""
    _show(evaluation.evaluate(*_trained(config, folder)).table(), folder)


def probe(config: ConfigDict, folder: Path) -> None:
    """What the latent of a run's best checkpoint says of the labels of its test split."""
    _show(probing.probe(*_trained(config, folder)).table(), folder)


def compile_ahead(config: ConfigDict, folder: Path, topology: str) -> None:
    """What the programs of a config would need on slices that are not there."""
    print(ahead.compile_for(config, folder, topology))


def _trained(config: ConfigDict, folder: Path) -> tuple[run.Run, Mesh, Params, int]:
    """A run with its best parameters and their step."""
    if not (folder / workdir.CONFIG).is_file():
        raise CheckpointError(f"{folder}: no run here; train it first, or give its --workdir")
    # Not claimed: to measure with other sizes leaves the run's own config as it is.
    workdir.check(folder, config)
    this = run.open_run(config, folder)
    mesh = meshes.make_mesh(this.config.mesh)
    return this, mesh, *loading.load_params(this.model, mesh, folder)


def text(
    mode: str, config: ConfigDict, folder: Path, lines: list[str], n: int, steps: int, seed: int
) -> None:
    """sample, reconstruct or interpolate: sentences from `lines` or standard input, text out.

    A conditional model takes sources to sample for, and lines `source<TAB>text` for the others.
    """
    if mode != "sample" and not lines:
        lines = [one.rstrip("\n") for one in sys.stdin]
    if mode == "reconstruct" and not lines:
        raise ConfigError("nothing to reconstruct: give --text='...' or lines on standard input")
    if mode == "interpolate" and len(lines) != 2:
        raise ConfigError(f"interpolate takes two sentences, not {len(lines)}: give --text twice")
    workdir.saved_config(folder)  # says so where there is no run
    vae = loading.load(folder, seed=seed)
    settings = {k: v for k, v in config.decode.items() if k not in ("batch", "max_length")}
    if mode == "sample":
        found = vae.sample(n, sources=sources_of(lines) if vae.conditional else None, **settings)
    else:
        sources, lines = pairs_of(lines) if vae.conditional else (None, lines)
        if mode == "reconstruct":
            found = vae.reconstruct(lines, sources)
        else:
            source = sources[0] if sources else None
            if sources and sources[1] != source:
                raise ConfigError("interpolate goes between two texts of one source; give it twice")
            found = vae.interpolate(lines[0], lines[1], steps, source)
    print("\n".join(workdir.one_line(sentence) for sentence in found))


def sources_of(lines: list[str]) -> list[str]:
    """Sources to sample for: as given, else the lines of standard input."""
    lines = lines or [one.rstrip("\n") for one in sys.stdin]
    if not lines:
        raise ConfigError("no source to sample for: give --text='...' or lines on standard input")
    return lines


def pairs_of(lines: list[str]) -> tuple[list[str], list[str]]:
    """Sources and texts of lines that hold both."""
    for i, one in enumerate(lines):
        if one.count("\t") != 1:
            raise ConfigError(
                f"line {i + 1} has {one.count(chr(9))} tabs: this model reads a source too; "
                "expected source<TAB>text"
            )
    pairs = [one.split("\t") for one in lines]
    return [source for source, _ in pairs], [text for _, text in pairs]


def _show(table: str, folder: Path) -> None:
    if processes.first():
        print(f"\n{table}\n\nFiles: {folder}/eval, {folder}/samples, {folder}/metrics.jsonl")
