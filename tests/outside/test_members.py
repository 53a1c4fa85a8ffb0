"""A file outside the package adds a prior, a posterior, a reader and a metric."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import jvae
from jvae import config as configs
from jvae.api import example_keys
from jvae.cli.main import main
from jvae.data import grammar
from jvae.data.formats import READERS
from jvae.evals.metric import METRICS
from jvae.latent.densities import POSTERIORS
from jvae.latent.priors import PRIORS
from jvae.models import FAMILIES
from jvae.training import loop

HERE = Path(__file__).parent
CONFIG = HERE / "members.py"
SMALL = (
    *(
        f"model.{side}.{key}={value}"
        for side in ("encoder", "decoder")
        for key, value in dict(layers=1, width=8, heads=2, mlp=8, positions=32, unroll=1).items()
    ),
    "model.latent=3",
    "data.batch_rows=8",
    "data.row_tokens=32",
    "data.tokenizer_kind=word",
    "train.steps=4",
    "train.check_every=2",
    "train.log_every=2",
    "optim.warmup_steps=0",
    "evals.samples=2",
    "evals.sentences=20",
    "evals.generate=10",
    "evals.interpolations=2",
)


def _text(folder: Path) -> tuple[str, ...]:
    values = []
    for split, count in (("train", 200), ("valid", 40), ("test", 40)):
        lines = [sentence.text for sentence in grammar.corpus(split, count)]
        path = folder / f"{split}.counted"
        path.write_text("".join(f"{len(line.split())} {line}\n" for line in lines))
        values.append(f"data.{split}={path}")
    return tuple(values)


def _command(folder: Path, *values: str) -> list[str]:
    overrides = (*SMALL, *_text(folder), *values)
    return [
        f"--config={CONFIG}",
        *(f"--config.{v}" for v in overrides),
        f"--workdir={folder / 'run'}",
    ]


REGISTRIES = (FAMILIES, METRICS, POSTERIORS, PRIORS, READERS)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    """A run that trained and was not evaluated; the registries are left as they were."""
    before = [dict(registry.items()) for registry in REGISTRIES]
    folder = tmp_path_factory.mktemp("outside")
    config, _ = configs.from_argv(_command(folder))
    loop.train(config, folder / "run")
    yield folder
    for registry, members in zip(REGISTRIES, before, strict=True):
        registry._members = members


@pytest.fixture
def registries() -> Iterator[None]:
    """Leaves the registries as they were."""
    before = [dict(registry.items()) for registry in REGISTRIES]
    yield
    for registry, members in zip(REGISTRIES, before, strict=True):
        registry._members = members


def test_a_config_brings_its_members(registries):
    config, _ = configs.from_argv([f"--config={CONFIG}", *(f"--config.{v}" for v in SMALL)])
    assert {"counted"} <= {name for name, _ in READERS.items()}
    family = FAMILIES[config.model.family]
    model = family.build(family.tiny(dict(enc=12, dec=12)))
    assert model.prior.form is None and model.post.has_kl
    key_e = example_keys(jax.random.key(0), np.arange(2_000, dtype=np.int32))
    z_egz = np.asarray(model.prior.sample({}, key_e))
    assert z_egz.shape == (2_000, *model.latent_shape)
    # A logistic distribution of scale 0.8.
    assert z_egz.var() == pytest.approx(0.8**2 * np.pi**2 / 3, rel=0.1)


def _rows(run: Path) -> dict[str, dict]:
    return json.loads((run / "eval/test.json").read_text())["metrics"]


@pytest.mark.slow
def test_it_evaluates(run):
    assert main(_command(run)) == 0
    rows = _rows(run / "run")
    assert 0 < rows["mean_length"]["value"] < 40
    assert np.isfinite(rows["kl"]["value"]) and np.isfinite(rows["nll_2"]["value"])
    assert "1 " not in (run / "run/samples/reconstructions.txt").read_text()  # the counts are gone


@pytest.mark.slow
def test_more_steps_resume_it(run):
    before = (run / "run/metrics.jsonl").read_text()
    assert main(_command(run, "train.steps=6")) == 0
    after = (run / "run/metrics.jsonl").read_text()
    assert after.startswith(before) and len(after) > len(before)


@pytest.mark.slow
def test_it_exports_and_loads(run, tmp_path):
    jvae.export(run / "run", tmp_path / "model")
    vae, again = jvae.load(run / "run"), jvae.load(tmp_path / "model")
    texts = [sentence.text for sentence in grammar.corpus("test", 3)]
    np.testing.assert_array_equal(vae.encode(texts), again.encode(texts))
    assert vae.sample(3) == again.sample(3)


@pytest.mark.slow
def test_without_its_file_the_message_says_what_to_import(run, tmp_path):
    jvae.export(run / "run", tmp_path / "model")
    code = """
import sys, jvae
from jvae.errors import JvaeError
try:
    jvae.load(sys.argv[1])
except JvaeError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert "'outside'" in done.stdout and "must be imported first" in done.stdout


@pytest.mark.slow
def test_it_passes_the_suites_of_every_family():
    suites = ["tests/conformance", "-k", "outside"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *suites]
    env = os.environ | {"JVAE_TEST_MEMBERS": str(CONFIG)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=HERE.parents[1], timeout=3600
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "no tests ran" not in done.stdout
