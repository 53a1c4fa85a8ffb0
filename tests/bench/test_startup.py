"""Starts in processes of their own: what is kept of them, and where their time goes."""

import json
import subprocess
import time
from types import SimpleNamespace

import pytest

from jvae.bench import first_step, startup
from jvae.errors import JvaeError


@pytest.fixture
def started(monkeypatch):
    """Calls of the fake process, and the parts that each start says it took."""
    calls, parts = [], [dict(data=9.0), dict(data=3.0), dict(data=1.0, step=1.0), dict(data=5.0)]

    def run(command, env, **_):
        calls.append((command, env))
        said = f"a table\n{json.dumps(parts[len(calls) - 1])}\n"
        return SimpleNamespace(returncode=0, stdout=said, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_first_start_is_cold_and_the_others_share_its_cache(started, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    starts = startup.Starts(["--config=lm"])
    for _ in range(4):
        starts()
    assert starts.extra["cold_s"] == 9.0
    assert starts.extra["seconds"] == 3.0 and starts.extra["parts_s"] == dict(data=3.0)
    assert len({env["JVAE_CACHE"] for _, env in started}) == 1
    assert len({command[-1] for command, _ in started}) == 4  # a working directory each
    for command, env in started:
        assert "JAX_COMPILATION_CACHE_DIR" not in env and "--config=lm" in command


def test_a_start_that_fails_says_why(monkeypatch):
    failed = SimpleNamespace(returncode=2, stdout="", stderr="error: no config 'lmm'")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(JvaeError, match="no config 'lmm'"):
        startup.Starts(["--config=lmm"])()


def test_every_second_belongs_to_a_part(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock = first_step.Clock(7.0)
    clock.lap("python")

    def read(seconds):
        now[0] += seconds
        return "read"

    now[0] = 12.0
    assert clock.around(read, "config", "data")(4.0) == "read"
    now[0] = 17.0
    clock.lap("config")
    assert clock.parts == dict(python=3.0, config=3.0, data=4.0)


@pytest.mark.slow
def test_a_real_start(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"the cat saw {i} dogs\n" for i in range(60)))
    small = ("model.decoder.layers=1", "model.decoder.width=8", "model.decoder.heads=1")
    values = (*small, "data.vocab=300", "data.batch_rows=2", f"data.train={text}")
    starts = startup.Starts(["--config=lm", *(f"--config.{value}" for value in values)])
    starts()
    starts()
    parts = {"python", "import_jax", "import_jvae", "config", "data", "state"}
    assert set(starts.extra["parts_s"]) == parts | {"trace", "lower", "compile", "step"}
    assert 1 < starts.extra["seconds"] < starts.extra["cold_s"] + 5
