"""The commands of an experiment: what is run, what is refused, what a signal stops."""

import sys

from jvae.experiments import steps
from jvae.experiments.steps import Runner, Step, complete
from jvae.training.preemption import CODE


def test_a_result_is_of_its_command(tmp_path, monkeypatch, capsys):
    ran, done = [], []
    result = tmp_path / "8x4/test.json"

    def run(self, command, log):
        ran.append(command[3:])
        result.parent.mkdir()
        result.write_text("{}")
        return 0

    monkeypatch.setattr(steps.Runner, "run", run)
    monkeypatch.setattr(steps.Runner, "listen", lambda self: None)
    step = Step("8x4", ["--config=lm", "--config.train.steps=10"], result)
    longer = step._replace(words=["--config=lm", "--config.train.steps=20"])
    assert [complete([one], tmp_path, done.append) for one in (step, step, longer)] == [0, 0, 2]
    assert ran == [step.words] and done == [step, step]
    assert "test.json was made by another command" in capsys.readouterr().err
    result.unlink()
    result.parent.rmdir()
    assert complete([longer], tmp_path, done.append) == 0 and ran[1:] == [longer.words]


def test_nothing_starts_after_a_signal(tmp_path):
    runner = Runner()
    runner.stopped = True
    program = f"open({str(tmp_path / 'started')!r}, 'w')"
    assert runner.run([sys.executable, "-c", program], tmp_path / "log") == CODE
    assert not (tmp_path / "started").exists()
