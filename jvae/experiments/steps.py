"""The commands of an experiment, each an ordinary run of `jvae.main` in its own process."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jvae.runs.workdir import write_text
from jvae.training.preemption import CODE


class Step(NamedTuple):
    """Arguments of `python -m jvae.main`, and the file that exists once they are done."""

    name: str
    words: list[str]
    result: Path

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(["python", "-m", "jvae.main", *self.words])


class Runner:
    """Runs commands one after another. SIGTERM is forwarded to the running command; control-C
    reaches it directly. The command saves and exits with `jvae.training.preemption.CODE`.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def listen(self) -> None:
        """From now on, signals stop the work once the running command has saved."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _: object) -> None:
        self.stopped = True
        if number == signal.SIGTERM and self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Runs a command with its output appended to a file; returns its exit code.

        After a signal it starts nothing and returns `CODE`.
        """
        if self.stopped:
            return CODE
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._child = subprocess.Popen(command, stdout=file, stderr=file)
            if self.stopped:  # the signal came before the process was known
                self._child.send_signal(signal.SIGTERM)
            return self._child.wait()


def complete(
    plan: Sequence[Step], logs: Path, after: Callable[[Step], None] = lambda step: None
) -> int:
    """Runs the steps whose results do not exist yet; returns the exit code.

    Stops at the first step that fails or is interrupted; calling it again resumes there. A result
    of another command, with other text or settings, is refused with exit code 2.

    Args:
      logs: folder of the logs, one file per step, and of the commands that made the results.
      after: called with each step that is done.
    """
    runner = Runner()
    runner.listen()
    for step in plan:
        log = logs / f"{step.name.replace(' ', '-')}.log"
        command = log.with_suffix(".command")
        print(f"{step.name}: {log}", flush=True)
        if step.result.is_file():
            if command.is_file() and command.read_text(encoding="utf-8") != step.command:
                print(
                    f"error: {step.result} was made by another command, which {command} has; give "
                    "another --out, or remove the result",
                    file=sys.stderr,
                )
                return 2
        else:
            write_text(command, step.command)
            code = runner.run([sys.executable, "-m", "jvae.main", *step.words], log)
            if runner.stopped or code:
                print(
                    f"{step.name} ended with exit code {code}; run the same command to continue",
                    file=sys.stderr,
                )
                return code or 1
        after(step)
    return 0
