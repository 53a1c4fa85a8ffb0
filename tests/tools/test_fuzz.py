"""A few cases of every kind; `python -m tests.tools.fuzz` runs thousands."""

import pytest

from jvae.errors import DataError
from tests.tools import fuzz, fuzz_configs


def test_text_ends_well():
    tally = fuzz.fuzz_text(5, 100)
    assert sum(tally.values()) == 100
    assert {outcome.split()[0] for outcome in tally} == {"read", "refused"}


def test_configs_end_well():
    tally = fuzz_configs.fuzz_configs(5, 20)
    assert sum(tally.values()) == 20 and tally["refused"]


def test_other_ends_are_failures(tmp_path):
    def refuse(message):
        raise DataError(message)

    assert fuzz.check(lambda: 7, "x") == 7
    assert fuzz.check(lambda: refuse("a.txt: no"), "x") == "a.txt: no"
    for wrong in (lambda: [][0], lambda: refuse("two\nlines"), lambda: refuse("x" * 3_000)):
        with pytest.raises(fuzz.Failure, match="^case x: "):
            fuzz.check(wrong, "x")
    with pytest.raises(fuzz.Failure, match="is not part of"):
        fuzz._compare("txt", b"a\nb\n", ["b", "a"], "x")
    with pytest.raises(fuzz.Failure, match="takes more than 1 s"), fuzz.deadline(1):
        while True:
            pass
