"""A few damaged folders of each kind; `python tests/tools/fuzz_folders.py` tries many."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("fuzz_folders.py")


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_folders", PATH)
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz_folders"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tokenizer_files(fuzz):
    tally = fuzz.fuzz_tokenizers(0, 60)
    assert tally.total() == 60 and tally["refused"] and tally["same"]


def test_exports(fuzz):
    tally = fuzz.fuzz_exports(0, 12)
    assert tally.total() == 12 and tally["refused"]


@pytest.mark.slow
def test_run_folders(fuzz):
    tally = fuzz.fuzz_run_folders(0, 60)
    assert tally.total() == 60 and tally["refused"] and tally["same"] and tally["last"]


def test_another_result_is_a_fault(fuzz, monkeypatch):
    """The oracle bites: a reader that gives another model than the whole folder is found."""
    other = fuzz.exports.load_export(fuzz._export())._replace(params=fuzz._params(1))
    monkeypatch.setattr(fuzz.exports, "load_export", lambda folder: other)
    with pytest.raises(fuzz.Fault, match="seed 0, case 0: .*another model past its sums"):
        fuzz.fuzz_exports(0, 1)
