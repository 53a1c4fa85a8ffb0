"""Kills a small run many times, resumes it to its end and compares it with one nobody touched.

    python -m tests.tools.survive                    30 kills, a tally, exit code 1 if a bit differs
    python -m tests.tools.survive --kills=3 --seed=1 --keep=folder

A second process sends SIGKILL or SIGTERM: at any moment of its life, while it trains, while
a checkpoint is written, or as one gets its name. Compared are every array of the last and the best
checkpoint, the position in the data, every line of the metrics, the report and the samples; only
times may differ. A run that ends before it was killed often enough is compared, and another begins.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvae.data import grammar
from jvae.runs.checkpoint import Checkpoints
from jvae.runs.metrics import read_lines
from jvae.training.preemption import CODE

STEPS = 60
CONFIG = (
    "--config=lm:tiny",
    "--config.model.decoder.layers=1",
    "--config.model.decoder.width=16",
    "--config.model.decoder.mlp=16",
    "--config.model.decoder.heads=2",
    "--config.optim.warmup_steps=2",
    "--config.data.row_tokens=32",
    "--config.data.batch_rows=8",
    "--config.data.vocab=300",
    "--config.mesh.data=1",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=3",
    "--config.train.check_every=4",
    "--config.train.tensorboard=false",
    "--config.evals.samples=1",
    "--config.evals.sentences=4",
    "--config.evals.generate=4",
    "--config.evals.interpolations=0",
)
MOMENTS = ("any", "training", "saving", "naming")
# The second process: waits for its moment, then kills. It imports nothing of ours.
KILLER = """
import os, pathlib, sys, time
pid, number, moment, folder, delay = sys.argv[1:]
root = pathlib.Path(folder)
def mask_spec():
    if moment == "any":
        return 0
    if moment == "training":
        log = root / "metrics.jsonl"
        return log.stat().st_size if log.exists() else 0
    names = [one.name for one in (root / "ckpt/last").glob("*")]
    return sorted(n for n in names if ("tmp" in n) == (moment == "saving"))
first = mask_spec()
while moment != "any":
    now = mask_spec()
    if now != first and now:
        break
    time.sleep(0.001)
time.sleep(float(delay))
os.kill(int(pid), int(number))
"""
# How long after its moment a kill may come, seconds; for "any" a share of a whole run.
DELAY = {"training": 0.5, "saving": 0.05, "naming": 0.01}


def start(words: Sequence[str]) -> subprocess.Popen:
    """The command line as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "jvae.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def attempt(
    words: Sequence[str], folder: Path, seed: random.Random, whole_s: float
) -> tuple[int, str, str, str]:
    """One start of a run and its killer: exit code, signal, moment and what it said."""
    number = seed.choice((signal.SIGKILL, signal.SIGTERM))
    moment = seed.choice(MOMENTS)
    delay = seed.random() * DELAY.get(moment, whole_s)
    run = start(words)
    arguments = [str(run.pid), str(int(number)), moment, str(folder), str(delay)]
    killer = subprocess.Popen(
        [sys.executable, "-S", "-c", KILLER, *arguments], stderr=subprocess.DEVNULL
    )
    _, said = run.communicate()
    killer.kill()
    killer.wait()
    return run.returncode, number.name, moment, said


def content(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves and no clock decides, by name."""
    values: dict[str, Any] = {}
    with Checkpoints(folder, read_only=True) as ckpts:
        for kind, best in (("last", False), ("best", True)):
            arrays, meta = ckpts.arrays(best=best)
            values |= {f"{kind}/{name}": (a.dtype, a.tobytes()) for name, a in arrays.items()}
            values[f"{kind}/meta"] = meta
    for number, line in enumerate(read_lines(folder / "metrics.jsonl")):
        values[f"metrics/{number}"] = {k: v for k, v in line.items() if "/time/" not in k}
    report = json.loads((folder / "eval/test.json").read_text())
    values["report"] = {name: value for name, value in report.items() if name != "time"}
    for path in sorted((folder / "samples").iterdir()):
        values[f"samples/{path.name}"] = path.read_text()
    return values


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same, or not in both."""
    return sorted(k for k in one.keys() | other.keys() if repr(one.get(k)) != repr(other.get(k)))


def survive(kills: int, seed: int, root: Path) -> list[str]:
    """Runs it all under `root`, prints the tally; returns what went wrong."""
    text = root / "corpus.txt"
    text.write_text("".join(f"{sentence.text}\n" for sentence in grammar.corpus("train", 200)))
    words = [*CONFIG, f"--config.data.train={text}", f"--config.data.cache={root / 'cache'}"]
    begin = time.monotonic()
    whole = start([*words, f"--workdir={root / 'whole'}"])
    _, said = whole.communicate()
    whole_s = time.monotonic() - begin
    if whole.returncode:
        return [f"the unbroken run ended with {whole.returncode}: {said}"]
    expected = content(root / "whole")
    print(f"unbroken: {STEPS} steps in {whole_s:.1f} s, {len(expected)} values", flush=True)

    chance, wrong = random.Random(seed), []
    tally: collections.Counter[tuple[str, str, int]] = collections.Counter()
    rounds = torn = 0
    while tally.total() < kills:
        rounds += 1
        folder = root / f"broken-{rounds}"
        run_words = [*words, f"--workdir={folder}"]
        code = None
        while code != 0:
            if tally.total() < kills:
                code, name, moment, said = attempt(run_words, folder, chance, whole_s)
            else:
                process = start(run_words)
                _, said = process.communicate()
                code, name, moment = process.returncode, "", ""
            torn += said.count("incomplete, skipped")
            # SIGTERM kills as ever before anything listens to it, while Python starts.
            expected_codes = {"SIGKILL": (-9,), "SIGTERM": (CODE, -15), "": ()}[name]
            if code in expected_codes:
                tally[name, moment, code] += 1
                print(f"{tally.total()}: {name}, {moment}: {code}", flush=True)
            elif code != 0:
                return [*wrong, f"{name or 'no signal'} ended the run with {code}: {said}"]
        wrong += [
            f"{folder.name}: {difference}" for difference in differences(expected, content(folder))
        ]
    for (name, moment, code), count in sorted(tally.items()):
        print(f"{count:4d} x {name:8s} {moment:9s} -> exit code {code}")
    print(
        f"{tally.total()} kills over {rounds} runs, {torn} checkpoints passed over, "
        f"{len(wrong)} of {rounds * len(expected)} values differ"
    )
    return wrong


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.survive", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to leave the runs in")
    args = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.getLogger("absl").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        root = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        wrong = survive(args.kills, args.seed, root.absolute())
    for line in wrong:
        print(f"differs: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
