"""Time from the command to the end of the first training step, each time in a new process.

The first call has an empty cache of compiled programs, so `compile_s` is the time the cache saves;
the windows are warm. `parts_s` breaks down the median start: interpreter, imports, data, state
(compiling and running the initialisation, the working directory), and tracing, lowering, compiling
and running the step itself.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import jvae
from jvae.bench import first_step, subjects
from jvae.bench.cases import Case, Setting
from jvae.bench.harness import Work
from jvae.errors import JvaeError


def works(setting: Setting) -> list[Work]:
    """A program that starts a run of the config."""
    starts = Starts(list(setting.subject.words))
    work = Work(
        name="first_step",
        call=starts,
        sentences=0,
        tokens=0,
        shapes={},
        extra=starts.extra,
    )
    return [work]


class Starts:
    """Each call restarts the run, with the caches left by earlier calls."""

    def __init__(self, words: list[str]):
        self._folder = Path(tempfile.mkdtemp(prefix="jvae-startup-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._words = words
        self._measured: list[dict[str, float]] = []
        self.extra: dict[str, Any] = {}

    def __call__(self) -> None:
        parts = self._start(self._folder, len(self._measured))
        self._measured.append(parts)
        if len(self._measured) == 1:
            self.extra |= {"cold_parts_s": parts, "cold_s": sum(parts.values())}
            return
        total = sorted(self._measured[1:], key=lambda start: sum(start.values()))
        middle = total[(len(total) - 1) // 2]
        self.extra["parts_s"] = middle
        self.extra["seconds"] = statistics.median(sum(start.values()) for start in total)

    def _start(self, folder: Path, number: int) -> dict[str, float]:
        env = os.environ | {
            "JVAE_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(Path(jvae.__file__).parent.parent),
            # This process is not the only one on the device.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        script = [sys.executable, "-P", first_step.__file__, str(time.time())]
        workdir = f"--workdir={folder / f'run-{number}'}"
        done = subprocess.run(
            [*script, *self._words, workdir], env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise JvaeError(f"startup: {' '.join(self._words)} ended with {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


# Half a minute per model: measuring all of them is a separate command.
CASE = Case(subjects.by_preset(accelerator=()) | {"gpu": subjects.TINY}, works, brief=1)
