"""Mistakes in members that the type checker names."""

import subprocess
import sys

import pytest

MEMBER = """
from jvae.nn.backbone import Stack

stack = Stack(config=None, features=4, longest=8)
"""


@pytest.mark.slow
def test_a_member_without_a_function_is_an_error(tmp_path):
    (tmp_path / "member.py").write_text(MEMBER)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "member.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert 'missing for parameters "init"' in done.stdout and '"rows"' in done.stdout
