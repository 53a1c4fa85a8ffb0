"""The cases of `tests/reference`: what they may hold, and that they equal their sources."""

import json

import numpy as np
import pytest

from tests.tools import take_reference
from tests.tools.reference import KEPT, WHOLE

FILES = sorted(p.relative_to(KEPT).as_posix() for p in KEPT.rglob("*") if p.is_file())


def test_one_case_for_every_original_and_every_family_of_backbones():
    backbones = {f"hf_backbones/{name}" for name in take_reference.BACKBONES}
    backbones.add("hf_backbones/bart")  # made by `tests/tools/make_bart.py`
    folders = {name.rsplit("/", 1)[0] for name in FILES}
    assert folders == backbones | {name.split("/")[0] for name in take_reference.ORIGINALS}
    assert sum((KEPT / name).stat().st_size for name in FILES) < 5e6


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".npz")])
def test_arrays_hold_numbers(name):
    """Next to numbers there is a description: names of parameters and settings, short values."""
    data = np.load(KEPT / name)
    words = {k for k in data.files if data[k].dtype.kind not in "fiub"}
    assert words <= {take_reference.META}
    for value in _strings(json.loads(str(data[take_reference.META])) if words else {}):
        assert len(value) < 80 and "\n" not in value, value


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value.values(), *value] if isinstance(value, dict) else value:
            yield from _strings(part)


@pytest.mark.skipif(not WHOLE.is_dir(), reason="the files that the cases were taken from are away")
@pytest.mark.parametrize("name", [n for n in FILES if "/bart/" not in n])
def test_a_case_is_what_it_was_taken_from(name):
    if not name.endswith(".npz"):
        assert (KEPT / name).read_bytes() == (WHOLE / name).read_bytes()
        return
    kept, whole = np.load(KEPT / name), np.load(WHOLE / name)
    missing = {k for k in whole.files if k not in kept.files}
    assert all(k.startswith("f32.") for k in missing)
    for key in set(kept.files) - {take_reference.META}:
        np.testing.assert_array_equal(kept[key], whole[key])
        assert kept[key].dtype == whole[key].dtype
