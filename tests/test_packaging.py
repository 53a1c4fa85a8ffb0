"""What setup.py declares: versions that were tested, a version in one place, extras that exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jvae
from jvae import extras
from jvae.errors import ConfigError

TOP = Path(jvae.__file__).parents[1]
UNPINNED = ("bertscore", "demo", "peer", "wandb", "datasets")  # no fast test needs them


@pytest.fixture(scope="module")
def declared() -> dict:
    """The arguments of `setup` in setup.py, which runs without setuptools: newer environments have
    none.
    """
    arguments: dict = {}
    tree = ast.parse((TOP / "setup.py").read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if getattr(n, "module", None) != "setuptools"]
    stand_ins = dict(setup=lambda **values: arguments.update(values), find_packages=lambda **_: [])
    exec(compile(tree, "setup.py", "exec"), stand_ins | {"__file__": str(TOP / "setup.py")})
    return arguments


def _requirements(declared: dict) -> list[Requirement]:
    groups = declared["extras_require"]
    extra = [line for name, group in groups.items() if name not in UNPINNED for line in group]
    return [Requirement(line) for line in (*declared["install_requires"], *extra)]


def test_constraints_pin_what_is_declared(declared):
    lines = (TOP / ".ci/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in _requirements(declared):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (str(requirement), version)


def test_pre_commit_runs_the_same_ruff():
    pins = (TOP / ".ci/constraints.txt").read_text(encoding="utf-8")
    hooks = (TOP / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"rev: v(\S+)", hooks) == re.findall(r"^ruff==(\S+)$", pins, re.M)


def test_the_version_is_that_of_the_package(declared):
    assert declared["version"] == jvae.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", jvae.__version__)


def test_the_package_says_that_it_is_typed(declared):
    assert "py.typed" in declared["package_data"]["jvae"]
    assert (TOP / "jvae/py.typed").is_file()


def test_shipped_models_are_in_the_package(declared):
    folder = TOP / "jvae"
    files = {path for path in (folder / "shipped").rglob("*") if path.is_file()}
    patterns = declared["package_data"]["jvae"]
    assert files and files <= {path for pattern in patterns for path in folder.glob(pattern)}


def test_extras_are_declared_and_a_missing_one_is_named(declared, monkeypatch, tmp_path):
    own_check = {"bertscore", "docs", "test"}
    assert extras.EXTRAS.keys() | own_check == declared["extras_require"].keys()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    needs = "--mode=report needs matplotlib and sklearn, which are not installed: pip install "
    with pytest.raises(ConfigError) as from_checkout:
        extras.require("figures", "--mode=report")
    assert str(from_checkout.value) == f"{needs}-e '.[figures]'"
    monkeypatch.setattr(extras, "SETUP", tmp_path / "setup.py")
    with pytest.raises(ConfigError) as from_wheel:
        extras.require("figures", "--mode=report")
    assert str(from_wheel.value) == f"{needs}'jvae[figures]'"


LOADED = """
import jvae, jvae.config
print(jvae.__file__)
print(jvae.config.load("sri:ptb").model.family, jvae.load("optimus-tiny").sample(1, seed=0))
"""


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(tmp_path):
    """A wheel holds the configs and the shipped model. Building it may download setuptools."""
    source, wheels, installed = (tmp_path / name for name in ("source", "wheels", "installed"))
    for folder in ("jvae", "configs"):
        shutil.copytree(TOP / folder, source / folder)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("jvae-*.whl")
    assert wheel.name.split("-")[1] == jvae.__version__
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    env = os.environ | {"PYTHONPATH": str(installed), "JVAE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.startswith(str(installed)) and "sri [" in done.stdout
