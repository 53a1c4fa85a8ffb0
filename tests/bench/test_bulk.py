"""Bulk against one by one, on a stand-in: what is called, what is compared."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jvae.bench import bulk
from jvae.errors import DataError


class Spelt:
    """Tells what it was called with."""

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(len(texts))
        return np.array([len(text) for text in texts])

    def decode(self, z):
        return ["a" * n for n in z]


@pytest.mark.parametrize("alone, calls", [(True, [1] * 6), (False, [3, 3])])
def test_both_ways_read_every_text_twice(monkeypatch, alone, calls):
    vae = Spelt()
    monkeypatch.setattr("jvae.runs.loading.load", lambda run: vae)
    actual = bulk.measure("run", ["a", "bb", "ccc"], alone)
    assert vae.calls == calls
    assert actual["same"] and actual["sentences"] == 3 and actual["peak_memory_bytes"] > 1e6


def test_the_record_holds_both_ratios_and_the_exit_code_both_bars(monkeypatch, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("a\nb\nc\n")
    speed = {"alone": 10.0, "list": 60.0}

    def run(command, **_):
        n, part = (word.split("=")[1] for word in command[-2:])
        actual = dict(sentences_per_s=speed[part], peak_memory_bytes=100 + int(n), same=True)
        return SimpleNamespace(returncode=0, stdout=json.dumps(actual))

    monkeypatch.setattr(bulk, "subprocess", SimpleNamespace(run=run, PIPE=None))
    words = ["run", str(path), "--n=3", "--few=2", "--alone=1"]
    assert bulk.main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["faster"] == 6 and record["memory"] == pytest.approx(103 / 102)
    speed["list"] = 40.0
    assert bulk.main(words) == 1
    assert bulk.main([*words[:2], "--n=4"]) == 2
    assert "3 sentences; expected at least --n=4" in capsys.readouterr().err
    with pytest.raises(DataError, match="3 sentences"):
        bulk.compare("run", path, 5, 1, 1)
