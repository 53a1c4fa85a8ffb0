"""What the launch scripts print must be a command that the real parser takes."""

import shlex
import subprocess
from pathlib import Path

from jvae import config as configs

SCRIPT = Path(__file__).parents[2] / "launch/local.sh"


def test_dry_run_prints_a_command_that_parses():
    words = ["--config=optimus:base", "--config.optim.lr=3e-4", "--workdir=a folder"]
    printed = subprocess.run(
        [SCRIPT, "--dry-run", *words], capture_output=True, text=True, check=True
    ).stdout
    _, module_flag, module, *rest = shlex.split(printed)
    assert (module_flag, module) == ("-m", "jvae.main")
    config, arguments = configs.from_argv(rest)
    assert config.name == "optimus-base" and config.optim.lr == 3e-4
    assert arguments == ["--workdir=a folder"]
