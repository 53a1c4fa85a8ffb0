"""The commands of the documentation, run as they stand in a temporary folder.

The shell and Python blocks of a page run in its order; Python blocks share their variables. The
line `<!-- not run: REASON -->` above a block leaves it out; the reasons are those of `REASONS`.
Trainings and evaluations get smaller sizes than the page's, by flags appended to the command.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from jvae.data import grammar

TOP = Path(__file__).parents[1]
PAGES = ["README.md", "launch/README.md", *sorted(f"docs/{p.name}" for p in TOP.glob("docs/*.md"))]
REASONS = {
    "accelerator": "needs a GPU or TPU, or their compilers",
    "cluster": "needs machines of its own",
    "environment": "makes or changes an environment; .ci/run runs such commands",
    "fragment": "part of a longer file",
    "network": "downloads models or data",
    "server": "runs until it is stopped",
    "placeholder": "names a folder that you must choose",
}
BLOCK = re.compile(r"(?:^<!-- (.+?) -->\n)?^```(bash|python)\n(.+?)^```$", re.M | re.S)
TRAINING = "--config.train.steps=20"
SIZES = ["samples=3", "sentences=16", "generate=16", "interpolations=2"]
# Flags are appended where the command trains or evaluates.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  *jvae.bench.bulk*) set -- "$@" --n=40 ;;
  *jvae.main*--mode=compile*) ;;
  *jvae.main*--mode=eval* | *jvae.main*--mode=probe* | *jvae.main*--mode=control*)
    set -- "$@" {" ".join(f"--config.evals.{size}" for size in SIZES)} ;;
  *jvae.main*--config=*)
    set -- "$@" {TRAINING} {" ".join(f"--config.evals.{size}" for size in SIZES)} ;;
esac
exec {sys.executable} "$@"
"""


class Block(NamedTuple):
    """A block of a page and its comment, "" if there is none."""

    comment: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is run here: .ci/run does it for the blocks marked "run" and "test"."""
        return self.comment not in ("run", "test") and not self.comment.startswith("not run: ")


def blocks(page: str) -> list[Block]:
    return [Block(*match) for match in BLOCK.findall((TOP / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_has_a_known_reason(page):
    reasons = {block.comment.partition("not run: ")[2] for block in blocks(page) if not block.runs}
    assert reasons <= {"", *REASONS}


def _sentences(split: str, n: int) -> str:
    return "".join(f"{sentence.text}\n" for sentence in grammar.corpus(split, n))


def _files(folder: Path) -> None:
    """The files that the pages name, with sentences of the embedded corpus."""
    text, rest = _sentences("train", 400), _sentences("test", 60)
    for name in ("snli/train.txt", "flickr8k/train.txt", "my.txt", "past.train.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name in ("present.train.txt", "past.test.txt", "present.test.txt", "sentences.txt"):
        (folder / name).write_text(rest)
    (folder / "ptb").mkdir()
    (folder / "ptb/train.txt.gz").write_bytes(gzip.compress(text.encode()))
    labels = ("positive", "negative")
    rows = [f"{labels[i % 2]}\t{line}\n" for i, line in enumerate(text.splitlines())]
    (folder / "train.tsv").write_text("".join(rows))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with files, a finished `runs/optimus-tiny` and a `python` for the shell."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    _files(folder)
    _shell("python -m jvae.main --config=optimus:tiny", folder)
    return folder


def _environment(folder: Path) -> dict[str, str]:
    """One device, as a user has; a number of devices, even 1, would hold for virtual ones too."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return os.environ | {"PATH": path, "XLA_FLAGS": flags, "PYTHONPATH": str(TOP)}


def _shell(text: str, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


# Reads a line of JSON per block; answers with its traceback, or an empty text.
SESSION = """
import json, sys, traceback
names = {}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
        answer = ""
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps({"answer": answer}), flush=True)
"""


class Session:
    """A Python process whose blocks share their variables."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, text: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(text) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"answer": '):
                answer = json.loads(line)["answer"]
                break
        else:
            answer = "the process ended"
        assert not answer, f"{text}\n{answer}"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs for b in blocks(page))])
def test_commands_of_a_page_run(page, base, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(base, folder)
    session = Session(folder)
    try:
        for block in blocks(page):
            if not block.runs:
                continue
            if block.language == "bash":
                _shell(block.text, folder)
            else:
                session.run(re.sub(r'"train\.steps": \d+', '"train.steps": 20', block.text))
    finally:
        session.end()
