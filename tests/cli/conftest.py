"""A small run that has ended, trained once for all tests of the command line."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from jvae.cli.main import main
from jvae.data import grammar

SMALL = (
    *(
        f"--config.model.{side}.{value}"
        for side in ("encoder", "decoder")
        for value in ("layers=1", "unroll=1", "width=16", "mlp=16")
    ),
    "--config.model.latent=4",
    "--config.mesh.data=1",
    "--config.optim.warmup_steps=2",
    "--config.data.row_tokens=32",
    "--config.data.batch_rows=4",
    "--config.data.vocab=300",
    "--config.train.steps=12",
    "--config.train.log_every=3",
    "--config.train.check_every=4",
    "--config.train.tensorboard=false",
    "--config.evals.samples=3",
    "--config.evals.sentences=8",
    "--config.evals.generate=8",
    "--config.evals.interpolations=2",
)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of all processes of this session, whose own temporary folders lie in it."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session")
def corpus(shared) -> Path:
    """A text file of a user's own."""
    path = shared / "corpus" / "mine.txt"
    with FileLock(shared / "corpus.lock"):
        if not path.exists():
            path.parent.mkdir()
            path.write_text("".join(f"{s.text}\n" for s in grammar.corpus("train", 400)))
    return path


@pytest.fixture(scope="session")
def command(corpus) -> Callable[..., list[str]]:
    """command(folder, *more): words that train a small run there."""

    def words(folder: Path, *more: str) -> list[str]:
        words = (f"--config.data.train={corpus}", f"--workdir={folder}")
        return ["--config=optimus:tiny", *SMALL, *words, *more]

    return words


@pytest.fixture(scope="session")
def finished(command, shared, tmp_path_factory) -> Path:
    """A run that ended, trained once for all processes; each works on a copy."""
    folder, trained = tmp_path_factory.mktemp("runs") / "mine", shared / "finished"
    with FileLock(shared / "finished.lock"):
        if not trained.exists():
            assert main(command(folder)) == 0
            folder.rename(trained)
    for copy in (folder, folder.with_name("untouched")):
        shutil.copytree(trained, copy)
    return folder


@pytest.fixture(scope="session")
def untouched(finished) -> Path:
    """The same, without what other tests measure on it."""
    return finished.with_name("untouched")
