"""What each `--mode` of the command line does."""

from pathlib import Path

from ml_collections import ConfigDict

from jvae import evaluation, loading, run, workdir
from jvae import train as training
from jvae.errors import CheckpointError
from jvae.parallel import mesh as meshes


def train(config: ConfigDict, folder: Path) -> None:
    """Trains, or goes on training, then evaluates the best checkpoint on the test split."""
    table = folder / "eval" / "test.txt"
    if table.is_file():
        workdir.claim(folder, config)
        print(f"{folder} is finished; --mode=eval measures it again\n\n{table.read_text()}", end="")
        return
    done = training.train(config, folder)
    report = evaluation.evaluate(done.run, done.mesh, done.params, done.step)
    _show(report.table(), folder)


def evaluate(config: ConfigDict, folder: Path) -> None:
    """Measures the best checkpoint of a run on its test split."""
    if not (folder / workdir.CONFIG).is_file():
        raise CheckpointError(f"{folder}: no run here; train it first, or give its --workdir")
    workdir.claim(folder, config)
    this = run.open_run(config, folder)
    mesh = meshes.make_mesh(this.config.mesh)
    params, step = loading.load_params(this.model, mesh, folder)
    _show(evaluation.evaluate(this, mesh, params, step).table(), folder)


def report(config: ConfigDict, folder: Path) -> None:
    """Pictures of a trained run and one HTML page with all of it, under `report/`."""
    from jvae import report as reports  # matplotlib takes a second to import

    workdir.saved_config(folder)  # says so where there is no run
    print(reports.write(config, folder))


def _show(table: str, folder: Path) -> None:
    print(f"\n{table}\n\nFiles: {folder}/eval, {folder}/samples, {folder}/metrics.jsonl")
