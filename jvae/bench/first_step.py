"""Runs a command until its first training step ends, and measures where the time went.

    python jvae/bench/first_step.py SPAWNED --config=optimus --workdir=...

`startup` runs this file by its path, so that nothing of `jvae.bench` is imported. The command line
is that of `jvae.main`, which runs unchanged; its slow parts are wrapped. The last line of the
output is JSON: seconds since SPAWNED (`time.time()` of the parent) by part.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from jvae.cli import allocator


class Clock:
    """Seconds by part: each part lasts from the end of the previous one."""

    def __init__(self, begin: float):
        self.parts: dict[str, float] = {}
        self._last = begin

    def lap(self, part: str) -> None:
        """Attributes the time since the last lap to this part."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def around(self, function: Callable[..., Any], before: str, part: str) -> Callable[..., Any]:
        """Wraps a function so that its calls are timed as one part, and the time before them as
        another.
        """

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.lap(before)
            out = function(*args, **kwargs)
            self.lap(part)
            return out

        return timed


def main(spawned: float, argv: list[str]) -> None:
    """Runs the command; ends the process after the first step."""
    clock = Clock(spawned)
    clock.lap("python")
    import jax

    clock.lap("import_jax")
    from jvae.cli import main as program_main
    from jvae.runs import build  # noqa: F401  (what training imports)
    from jvae.training import program

    clock.lap("import_jvae")

    def stop_at_first(step: Any) -> Callable[..., Any]:
        def first(*args: Any) -> Any:
            clock.lap("state")
            traced = step.trace(*args)
            clock.lap("trace")
            lowered = traced.lower()
            clock.lap("lower")
            compiled = lowered.compile()
            clock.lap("compile")
            jax.block_until_ready(compiled(*args))
            clock.lap("step")
            print(json.dumps(clock.parts), flush=True)
            os._exit(0)  # skips clean-up: none of the run's results are needed

        return first

    compile_phase = program.compile_phase

    def compiled_phase(*args: Any, **kwargs: Any) -> Any:
        compiled = compile_phase(*args, **kwargs)
        return compiled._replace(train_step=stop_at_first(compiled.train_step))

    program.compile_phase = compiled_phase
    build.open_run = clock.around(build.open_run, "config", "data")
    sys.exit(program_main.main(argv))


if __name__ == "__main__":
    allocator.restart()
    main(float(sys.argv[1]), sys.argv[2:])
