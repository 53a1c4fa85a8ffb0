"""Commands restart once with an allocator that keeps memory, and nothing else of them changes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jvae.cli import allocator

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, signal, sys
from jvae.cli import allocator
if __name__ == "__main__":
    allocator.restart()
    if sys.argv[-1] == "wait":
        print(allocator.name(), flush=True)
        signal.pause()
    settings = {k: v for k, v in os.environ.items() if k.startswith(("JVAE_ALLOC", "GLIBC"))}
    import jax
    inline = not jax.config.values["jax_cpu_enable_async_dispatch"]
    process = (os.getpid(), allocator.name(), sys.argv, sys.stdin.read())
    print(json.dumps([*process, settings, [sys.flags.optimize, sys.warnoptions], inline]))
    sys.exit(7)
"""
KEEPING = "glibc, keeping memory"
needs_glibc = pytest.mark.skipif(not allocator._glibc(), reason="needs Linux with glibc")


@pytest.fixture
def start(tmp_path):
    """start(*words, **environment): the program above as a process."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def started(*words: str, **values: str) -> subprocess.Popen:
        env = {k: v for k, v in os.environ.items() if k != allocator.VARIABLE}
        env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | values
        command = [sys.executable, "-O", "-W", "error", str(script), *words]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return subprocess.Popen(command, env=env, text=True, **pipes)

    return started


def ended(process: subprocess.Popen) -> tuple[str, list[str], dict[str, str]]:
    """Allocator, arguments and settings of a program, all else of which is as it was started."""
    out, error = process.communicate("two\nlines", timeout=60)
    assert process.returncode == 7 and not error
    pid, name, argv, text, settings, options, inline = json.loads(out)
    assert pid == process.pid and text == "two\nlines" and options == [1, ["error"]]
    assert inline == (name == KEEPING)  # else a large block is mapped anew at every call
    return name, argv[1:], settings


@needs_glibc
def test_a_program_restarts_as_itself(start):
    words = ("--text=a b", "", "-x")
    assert ended(start(*words)) == (KEEPING, list(words), {})
    # Settings of the user are kept, and the processes it starts get those alone.
    environment = {allocator.TUNABLES: "glibc.rtld.nns=5"}
    assert ended(start(*words, **environment)) == (KEEPING, list(words), environment)


@needs_glibc
@pytest.mark.parametrize(
    "values, name",
    [
        ({allocator.VARIABLE: allocator.SYSTEM}, "glibc"),
        ({allocator.TUNABLES: "glibc.malloc.arena_max=2"}, None),
        ({"JAX_PLATFORMS": "cuda,cpu"}, "glibc"),
    ],
)
def test_a_choice_and_accelerators_are_left_alone(start, values, name):
    expected = name or f"glibc, {values[allocator.TUNABLES]}"
    settings = {k: v for k, v in values.items() if not k.startswith("JAX")}
    assert ended(start("x", **values)) == (expected, ["x"], settings)


@needs_glibc
def test_signals_reach_it(start):
    process = start("wait")
    assert process.stdout.readline() == f"{KEEPING}\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_other_programs_are_not_restarted(monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    monkeypatch.setattr(sys, "argv", ["jvae", "--mode=train"])  # not what this process runs
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    allocator.restart()


def test_a_restart_that_fails_goes_on(monkeypatch):
    tried = []

    def fails(*command):
        tried.append(command)
        raise OSError("no room")

    monkeypatch.setattr(os, "execve", fails)
    monkeypatch.setattr(allocator, "_helps", lambda: True)
    monkeypatch.setattr(allocator, "_is_program", lambda: True)
    before = dict(os.environ)
    allocator.restart()
    assert len(tried) == 1 and dict(os.environ) == before


def test_hosts_with_accelerators(monkeypatch):
    monkeypatch.setattr(allocator.glob, "glob", lambda pattern: [])
    monkeypatch.delenv("JAX_PLATFORMS")
    assert allocator._on_cpu()
    monkeypatch.setattr(allocator.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert not allocator._on_cpu()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert allocator._on_cpu()
