"""Arrays in the cache: made once, found damaged, and never in the way."""

import numpy as np
import pytest

from jvae.data.kept import digest, kept

ARRAYS = dict(flat=np.arange(7, dtype=np.int32), offset=np.array([0, 3, 7]))


@pytest.fixture
def counted():
    """The calls of `make`, and a function that counts them."""
    calls = []

    def make():
        calls.append(1)
        return {name: array.copy() for name, array in ARRAYS.items()}

    return calls, make


def assert_right(arrays):
    assert arrays.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype


def test_they_are_made_once(counted, tmp_path):
    calls, make = counted
    for _ in range(3):
        assert_right(kept(tmp_path / "new" / "file", make))
    assert len(calls) == 1


def test_any_damage_is_found(counted, tmp_path):
    """Some bits of an archive change its content or how it is read, and no checksum of its own."""
    calls, make = counted
    path = tmp_path / "file"
    kept(path, make)
    whole = path.read_bytes()
    damaged = [bytes([*whole[:i], whole[i] ^ 8, *whole[i + 1 :]]) for i in range(0, len(whole), 7)]
    for count, content in enumerate([*damaged, whole[:-1], whole[:10], b""], 2):
        path.write_bytes(content)
        assert_right(kept(path, make))
        assert len(calls) == count and path.read_bytes() == whole


def test_a_place_that_cannot_be_written_costs_only_time(counted, tmp_path):
    calls, make = counted
    (tmp_path / "file").write_text("")
    for count in (1, 2):
        assert_right(kept(tmp_path / "file" / "below", make))
        assert len(calls) == count


def test_a_full_disk_leaves_nothing_behind(counted, tmp_path, monkeypatch):
    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    _, make = counted
    assert_right(kept(tmp_path / "file", make))
    assert not list(tmp_path.iterdir())


def test_digests_tell_parts_apart():
    array = np.arange(6, dtype=np.int32)
    contents = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("abc", ""),
        (array,),
        (array.reshape(2, 3),),
        (array.astype(np.int64),),
        (array[:3], array[3:]),
        (array[:2], array[2:]),
        (array[::-1],),
    ]
    assert len({digest(*parts) for parts in contents}) == len(contents)
    assert digest(array[::-1]) == digest(array[::-1].copy())
