"""The killing script finds what differs, and a run survives it."""

import pytest

from tests.tools import survive


def test_differences_are_named():
    one = {"a": b"12", "b": 1.0, "c": 3}
    assert survive.differences(one, dict(one)) == []
    assert survive.differences(one, {"a": b"13", "b": 1.0, "d": 0}) == ["a", "c", "d"]


@pytest.mark.slow
def test_a_run_survives(tmp_path, capsys):
    assert survive.main(["--kills=4", f"--keep={tmp_path}"]) == 0
    assert "4 kills over" in capsys.readouterr().out
