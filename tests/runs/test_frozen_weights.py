"""Weights that never change lie once in a run, and its checkpoints refer to them."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvae.errors import CheckpointError
from jvae.runs.checkpoint import FROZEN, Checkpoints

PATHS = {"params/base", "params/table"}


def make_state(step: int = 0):
    base = jax.random.normal(jax.random.key(0), (300, 100)).astype(jnp.bfloat16)
    params = {"base": base, "table": jnp.arange(5000.0), "head": jnp.full(3, float(step))}
    return {"params": params, "step": jnp.int32(step)}


def write(folder: Path, *steps: int, frozen=PATHS) -> None:
    with Checkpoints(folder, frozen=frozen) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"n": step})


def read(folder: Path, like=None, **how):
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore(make_state() if like is None else like, **how)[0]


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_they_are_written_once_and_every_checkpoint_reads_them(tmp_path):
    write(tmp_path / "once", 1, 2)
    write(tmp_path / "each", 1, 2, frozen=())
    assert size(tmp_path / "each/ckpt/last/2") > 50_000
    assert size(tmp_path / "once/ckpt/last/2") < 20_000
    assert_same(read(tmp_path / "once"), make_state(2))
    shutil.move(tmp_path / "once", tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere/ckpt/frozen/0").stat().st_mtime_ns
    write(tmp_path / "elsewhere", 3)  # a resumed run writes them no second time
    assert (tmp_path / "elsewhere/ckpt/frozen/0").stat().st_mtime_ns == before
    assert_same(read(tmp_path / "elsewhere"), make_state(3))
    assert_same(read(tmp_path / "elsewhere", step=2), make_state(2))
    with Checkpoints(tmp_path / "elsewhere", read_only=True) as checkpoints:
        arrays, meta = checkpoints.arrays()
    assert arrays.keys() == {*PATHS, "params/head", "step"} and meta["n"] == 3


def test_a_part_is_read_in_the_number_type_it_is_stored_in(tmp_path):
    write(tmp_path, 1)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), make_state())
    got = read(tmp_path, {"params": like["params"]}, partial=True)
    assert_same(got, {"params": make_state(1)["params"]})
    alone = read(tmp_path, {"params": {"base": like["params"]["base"]}}, partial=True)
    assert_same(alone, {"params": {"base": make_state()["params"]["base"]}})


def test_a_run_whose_checkpoints_have_everything_goes_on(tmp_path):
    write(tmp_path, 1, frozen=())
    write(tmp_path, 2)
    assert_same(read(tmp_path, step=1), make_state(1))
    assert_same(read(tmp_path), make_state(2))


def test_leftovers_of_a_start_without_a_checkpoint_are_replaced(tmp_path):
    write(tmp_path, 1, frozen={"params/table"})
    shutil.rmtree(tmp_path / "ckpt/last/1")
    write(tmp_path, 1)
    assert_same(read(tmp_path), make_state(1))


def flip(folder: Path) -> None:
    file = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def other(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    write(folder.parents[1] / "other", 1, frozen={"params/table"})
    shutil.copytree(folder.parents[1] / "other/ckpt/frozen", folder.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "frozen weights are missing"),
        (flip, "frozen weights cannot be read .*damaged"),
        (lambda folder: shutil.rmtree(folder / "meta"), "frozen weights cannot be read"),
        (other, "weights of another run"),
    ],
)
def test_without_them_there_is_one_error_and_no_checkpoint_is_given_up(tmp_path, damage, message):
    write(tmp_path, 1, 2)
    damage(tmp_path / "ckpt" / FROZEN / "0")
    with pytest.raises(CheckpointError, match=f"ckpt/frozen: .*{message}.* from a copy"):
        read(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(make_state())
        assert checkpoints.latest() == 2
    assert not (tmp_path / "ckpt/torn").exists()


def test_other_weights_are_not_written_over_those_of_checkpoints(tmp_path):
    write(tmp_path, 1)
    changed = make_state(2)
    changed["params"]["table"] += 1
    with (
        Checkpoints(tmp_path, frozen=PATHS) as checkpoints,
        pytest.raises(CheckpointError, match="other frozen weights than those of this run"),
    ):
        checkpoints.save(2, changed, {})
