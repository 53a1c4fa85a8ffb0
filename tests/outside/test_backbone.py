"""A backbone from outside the package: trains, resumes, exports, loads, passes every suite."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jvae
from jvae.backbones import BACKBONES, LAYOUTS
from jvae.cli.main import main
from jvae.data import grammar
from jvae.models import FAMILIES

HERE = Path(__file__).parent
CONFIG = HERE / "backbone.py"
SMALL = (
    *(
        f"model.decoder.{key}={value}"
        for key, value in dict(layers=2, width=12, heads=4, kv_heads=2, head=4, mlp=8).items()
    ),
    "data.row_tokens=64",
    "data.batch_rows=8",
    "train.steps=4",
    "train.check_every=2",
    "train.log_every=2",
    "optim.warmup_steps=0",
    "evals.samples=2",
    "evals.sentences=12",
    "evals.generate=4",
    "evals.interpolations=2",
)
OWN = {
    "tokens": tuple(
        f"model.encoder.{key}={value}"
        for key, value in dict(layers=1, width=8, heads=2, mlp=8, unroll=1).items()
    ),
    "fusion": ("model.latent=4", "objective.beta.n_cycle=1"),
}


@pytest.fixture
def registries() -> Iterator[None]:
    """They are left as they were."""
    registries: tuple[Any, ...] = (BACKBONES, FAMILIES, LAYOUTS)
    before = [dict(registry.items()) for registry in registries]
    yield
    for registry, members in zip(registries, before, strict=True):
        registry._members = members


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tokens", "fusion"])
def test_it_trains_resumes_exports_and_loads(way, tmp_path, registries):
    run = tmp_path / "run"
    values = [f"--config.{v}" for v in (*SMALL, *OWN[way])]
    command = [f"--config={CONFIG}:{way}", *values, f"--workdir={run}"]
    assert main(command) == 0
    before = (run / "metrics.jsonl").read_text()
    assert main([*command, "--config.train.steps=6"]) == 0
    after = (run / "metrics.jsonl").read_text()
    assert after.startswith(before) and len(after) > len(before)

    jvae.export(run, tmp_path / "model")
    vae, again = jvae.load(run), jvae.load(tmp_path / "model")
    texts = [sentence.text for sentence in grammar.corpus("test", 3)]
    np.testing.assert_array_equal(vae.encode(texts), again.encode(texts))
    assert vae.sample(3) == again.sample(3)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["tests/conformance"])
def test_it_passes_the_suites_of_every_family(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", suite]
    env = os.environ | {"JVAE_TEST_MEMBERS": f"{CONFIG}"}
    done = subprocess.run(
        [*command, "-k", "outside"],
        capture_output=True,
        text=True,
        env=env,
        cwd=HERE.parents[1],
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "no tests ran" not in done.stdout
