"""Packages depend on lower ones only, so that each can be read without those above it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jvae

PACKAGE = Path(jvae.__file__).parent
# From the bottom up. Packages on one level do not import each other.
LEVELS = (
    ("errors", "fields", "renamed"),
    ("api", "config", "extras", "hub", "registry", "tree"),
    ("parallel",),
    ("data", "decode", "latent", "nn", "pretrained"),
    ("backbones", "fitted", "injections"),
    ("inference", "models"),
    ("runs",),
    ("evals",),
    ("report", "training"),
    ("validation",),
    ("cli",),
    ("bench", "demo"),
    ("experiments",),
)
# The documented names of modules that moved up.
SHIMS = ("__init__.py", "main.py", "bench/fair.py", "bench/table.py")


def _unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """The packages and top-level modules of jvae that a file imports, inside functions too."""
    units = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        units |= {part[1] for part in parts if part[0] == "jvae" and len(part) > 1}
    return units


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).as_posix() not in SHIMS and "configs" not in path.parts
]


def test_every_package_has_a_level():
    assert {_unit(path) for path in FILES} == {unit for level in LEVELS for unit in level}


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=[level[0] for level in LEVELS])
def test_imports_go_down(level: int):
    lower = {unit for below in LEVELS[:level] for unit in below}
    upward = {
        f"{path.relative_to(PACKAGE)} imports {unit}"
        for path in FILES
        if (package := _unit(path)) in LEVELS[level]
        for unit in _imported(path) - lower - {package}
    }
    assert not upward


def test_old_names_lead_to_the_modules_that_moved():
    assert all((PACKAGE / shim).is_file() for shim in SHIMS)
    assert jvae.space.lines.direction is importlib.import_module("jvae.latent.geometry").direction
    assert jvae.weights is importlib.import_module("jvae.runs.exports")


def test_a_start_imports_no_large_library_that_it_may_not_need():
    program = "import sys, jvae.cli.commands; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    late = {"jax.experimental.pallas.tpu", "scipy", "tensorflow_datasets", "torch", "transformers"}
    assert not late & set(out.stdout.split())
