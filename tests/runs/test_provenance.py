"""A checkout names its commit; an installed package has none."""

import subprocess
from pathlib import Path

import pytest

from jvae.runs import provenance

TOP = Path(__file__).parents[2]


def test_the_commit_is_that_of_the_checkout():
    if not (TOP / ".git").exists():
        pytest.skip("no checkout")
    command = ["git", "-C", str(TOP), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    actual = provenance.commit()
    assert actual and head[:7] in actual


def test_an_installed_package_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "jvae/runs/provenance.py"))
    assert provenance.commit() is None
