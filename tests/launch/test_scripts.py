"""Every command that a launch script prints, and every one in its README, parses as it stands."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jvae import config as configs
from jvae.cli import main

LAUNCH = Path(__file__).parents[2] / "launch"
RUN = ["--config=optimus:base", "--config.optim.lr=3e-4", "--workdir=a folder", "--mode=train"]
POD = ["--name=pod", "--zone=z"]


def printed(script: str, *words: str) -> list[list[str]]:
    """The words of every line that a dry run prints."""
    done = subprocess.run(
        [LAUNCH / script, "--dry-run", *words], capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.splitlines()]


def parsed(words: list[str]):
    """Config and flags of a command of jvae.main."""
    start = words.index("jvae.main")
    assert words[start - 1] == "-m"
    config, rest = configs.from_argv(words[start + 1 :])
    flags = main._flags()
    assert flags(["jvae", *rest]) == ["jvae"]
    return config, flags


def check(words: list[str]):
    config, flags = parsed(words)
    assert config.name == "optimus-base" and config.optim.lr == 3e-4
    assert flags.workdir == "a folder" and flags.mode == "train"
    return flags


def test_local_processes():
    commands = printed("local.sh", "--processes=3", "--devices=2", *RUN)
    flags = [check(words) for words in commands]
    assert [flag.process for flag in flags] == [0, 1, 2]
    assert {flag.processes for flag in flags} == {3}
    assert len({flag.coordinator for flag in flags}) == 1


def test_slurm():
    submit, start = printed("slurm.sh", "--nodes=2", "--gpus=8", "--partition=big one", "--", *RUN)
    check(start)
    assert submit[0] == "sbatch" and submit[-len(RUN) :] == RUN
    expected = {"--requeue", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"}
    assert expected | {"--partition=big one", "--signal=TERM@120"} <= set(submit)


def test_slurm_requeues_on_the_exit_code_alone(tmp_path):
    """The body of the job, with stand-ins for Slurm's programs."""
    calls = tmp_path / "calls"
    for name, code in (("srun", '[ "$RESULT" ] && exit "$RESULT"'), ("scontrol", "")):
        tool = tmp_path / name
        tool.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> "{calls}"\n{code}\n')
        tool.chmod(0o755)
    for result in (75, 2):
        calls.write_text("")
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JVAE_IN_SLURM": "1", "SLURM_JOB_ID": "7"}
        done = subprocess.run([LAUNCH / "slurm.sh", *RUN], env=env | {"RESULT": str(result)})
        assert done.returncode == result
        assert ("scontrol requeue 7" in calls.read_text()) == (result == 75)


def test_tpu_pod():
    (create,) = printed("tpu_pod.sh", *POD, "create", "--type=v5litepod-256", "--spot")
    assert {"create", "pod", "--zone=z", "--accelerator-type=v5litepod-256", "--spot"} <= set(
        create
    )
    (start,) = printed("tpu_pod.sh", *POD, "run", *RUN)
    assert "--worker=all" in start
    (inner,) = (word.partition("=")[2] for word in start if word.startswith("--command="))
    check(shlex.split(inner))
    setup = printed("tpu_pod.sh", *POD, "setup", "--mount=host:/share")
    assert len(setup) == 3 and "host:/share" in setup[2][-1]
    assert printed("tpu_pod.sh", *POD, "stop")[0][-1].startswith("--command=pkill -TERM")
    assert "delete" in printed("tpu_pod.sh", *POD, "delete")[0]


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_nothing_to_do_is_an_error(script):
    done = subprocess.run([LAUNCH / script, "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_every_command_of_the_readme_parses():
    text = (LAUNCH / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    actual = 0
    for line in lines:
        words = [word for word in shlex.split(line) if not word.startswith("PYTHON=")]
        if words[0] == "launch/env.sh":
            commands = [["python", *words[1:]]]
        elif words[0].startswith("launch/"):
            commands = printed(words[0].removeprefix("launch/"), *words[1:])
        else:
            commands = [words]
        for command in commands:
            inner = [w.partition("=")[2] for w in command if w.startswith("--command=")]
            command = shlex.split(inner[0]) if inner else command
            if "jvae.main" in command:
                actual += 1
                assert parsed(command)[0] is not None
    assert actual >= 8
