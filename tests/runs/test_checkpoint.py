import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jvae
from jvae.errors import CheckpointError
from jvae.parallel.mesh import make_mesh
from jvae.runs import checkpoint
from jvae.runs.checkpoint import LAYOUT, Checkpoints
from jvae.runs.state_dict import arrays_of, checksums
from jvae.tree import named_leaves


class State(NamedTuple):
    params: dict
    opt: tuple
    step: jax.Array
    key: jax.Array
    keys: jax.Array


TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {
        "a": {"kernel": jax.random.normal(key, (8, 4))},
        "b": jax.random.normal(key, (6,)).astype(jnp.bfloat16),
    }
    grads = jax.tree.map(jnp.ones_like, params)
    opt = TX.update(grads, TX.init(params), params)[1]
    return State(params, opt, jnp.int32(seed), key, jax.random.split(key, 3))


def data(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (name, a), b in zip(named_leaves(got).items(), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype, name
        assert data(a).tobytes() == data(b).tobytes(), name


def abstract(state):
    return jax.eval_shape(lambda: state)


def spoil(folder: Path):
    """Cuts every array file in half: as after a disk lost its last writes."""
    for file in (folder / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_round_trip_is_exact(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None and checkpoints.best() is None
        checkpoints.save(3, state, {"row": 17, "config": {"lr": 0.1}})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        got, meta = checkpoints.restore(abstract(state))
        assert checkpoints.meta() == meta
    assert_same(got, state)
    assert jax.random.key_impl(got.key) == jax.random.key_impl(state.key)
    assert meta == {
        "row": 17,
        "config": {"lr": 0.1},
        "step": 3,
        "version": jvae.__version__,
        "layout": LAYOUT,
        "keys": {"key": "threefry2x32", "keys": "threefry2x32"},
        "checksums": checksums(arrays_of(state)),
    }


def test_donated_while_it_is_being_written(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.5 + 1, tree), donate_argnums=0)
    state, want = {"w": jnp.arange(300_000.0)}, {}
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        for i in range(5):
            want[i] = np.array(state["w"])
            checkpoints.save(i, state, {})
            state = step(step(state))
        for i in range(5):
            np.testing.assert_array_equal(checkpoints.restore(state, i)[0]["w"], want[i])


@pytest.mark.multidevice
def test_other_shardings_give_the_same_numbers(tmp_path):
    state = {"w": jnp.arange(64.0).reshape(8, 8), "key": jax.random.key(1)}
    places = [
        (make_mesh({"data": 4, "fsdp": 2}), PartitionSpec("data", "fsdp")),
        (make_mesh({"fsdp": 2}), PartitionSpec(None, "fsdp")),
        (make_mesh({"data": 8}), PartitionSpec()),
    ]
    with Checkpoints(tmp_path) as checkpoints:
        for step, (mesh, spec) in enumerate(places):
            sharding = NamedSharding(mesh, spec)
            whole = NamedSharding(mesh, PartitionSpec())
            like = {
                "w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding),
                "key": jax.ShapeDtypeStruct((), state["key"].dtype, sharding=whole),
            }
            if step:
                state, _ = checkpoints.restore(like)
                assert state["w"].sharding == sharding
                assert state["key"].sharding.is_equivalent_to(whole, 0)
            else:
                state = {
                    "w": jax.device_put(state["w"], sharding),
                    "key": jax.device_put(state["key"], whole),
                }
            assert_same(state, {"w": jnp.arange(64.0).reshape(8, 8), "key": jax.random.key(1)})
            checkpoints.save(step, state, {})


def test_keeps_the_last_few_and_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step, metric in enumerate([3.0, 1.0, math.nan, 2.0, 1.0]):
            state = {"w": jnp.full(3, step)}
            checkpoints.save(step, state, {})
            saved = checkpoints.save_best(step, state, {"row": step}, metric)
            assert saved == (step < 2)
        checkpoints.wait()
        assert sorted(p.name for p in (tmp_path / "ckpt/last").iterdir()) == ["3", "4"]
        assert sorted(p.name for p in (tmp_path / "ckpt/best").iterdir()) == ["1"]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best(), checkpoints.best_metric()) == (1, 1.0)
        got, meta = checkpoints.restore(abstract(state), best=True)
        assert (int(got["w"][0]), meta["row"], meta["metric"]) == (1, 1, 1.0)
        assert not checkpoints.save_best(5, state, {}, 1.5)
        assert checkpoints.save_best(6, state, {}, 0.5) and checkpoints.best_metric() == 0.5


def test_a_best_of_an_older_kind_does_not_compare(tmp_path, monkeypatch):
    state = {"w": jnp.zeros(3)}
    with monkeypatch.context() as older, Checkpoints(tmp_path) as checkpoints:
        older.setattr(checkpoint, "METRIC", "a loss whose KL weight still rises")
        assert checkpoints.save_best(1, state, {}, 1.0)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best(), checkpoints.best_metric()) == (1, math.inf)
        assert checkpoints.save_best(2, state, {}, 3.0) and checkpoints.best() == 2


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)}, {"n": 1})
        checkpoints.save(1, {"w": jnp.ones(2)}, {"n": 2})
        assert checkpoints.meta()["n"] == 1


def test_part_of_a_state(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        part = {"params": abstract(state.params)}
        got, _ = checkpoints.restore(part, partial=True)
        assert_same(got, {"params": state.params})
        with pytest.raises(CheckpointError, match=r"only in it \(key, keys, opt/"):
            checkpoints.restore(part)


def flip(folder: Path):
    """One bit of the largest file, which holds the arrays: no reader below us notices."""
    file = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def without_meta(folder: Path):
    (folder / "meta/metadata").unlink()


def empty(folder: Path):
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize("damage", [spoil, flip, without_meta, empty])
def test_torn_newest_is_passed_over_and_moved_aside(tmp_path, caplog, damage):
    states = {step: {"w": jax.random.normal(jax.random.key(step), (3000,))} for step in (1, 2)}
    with Checkpoints(tmp_path) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {})
    damage(tmp_path / "ckpt/last/2")
    caplog.set_level(logging.WARNING, "jvae")
    with Checkpoints(tmp_path) as checkpoints:
        got, meta = checkpoints.restore(abstract(states[1]))
        assert meta["step"] == 1 and checkpoints.latest() == 1
        assert_same(got, states[1])
        assert "last/2: incomplete, skipped" in caplog.text
        with pytest.raises(CheckpointError, match="no checkpoint of step 2 that can be read"):
            checkpoints.restore(abstract(states[1]), 2)
        checkpoints.save(2, states[2], {"again": True})
        assert_same(checkpoints.restore(abstract(states[2]))[0], states[2])
        assert checkpoints.meta()["again"]
    assert [path.name for path in (tmp_path / "ckpt/torn").iterdir()] == ["last-2"]
    assert sorted(path.name for path in (tmp_path / "ckpt/last").iterdir()) == ["1", "2"]


def test_reading_warns_of_nothing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as ckpts:
        ckpts.save(1, {"params": {"a": jnp.ones(2)}}, {"score": 1.0})
    lines = []
    monkeypatch.setattr(logging.getLogger("absl"), "handle", lines.append)
    with Checkpoints(tmp_path, read_only=True) as ckpts:
        assert ckpts.meta()["score"] == 1.0
    assert not [line for line in lines if line.levelno >= logging.WARNING]


def test_reads_that_nobody_waits_for_leave_no_traceback(monkeypatch, caplog):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    checkpoint._silence_abandoned_reads.cache_clear()
    checkpoint._silence_abandoned_reads()

    def report(error: Exception) -> SimpleNamespace:
        return SimpleNamespace(exc_value=error)

    sys.unraisablehook(report(RuntimeError("Event loop is closed")))
    assert not reports
    sys.unraisablehook(report(RuntimeError("another")))
    sys.unraisablehook(report(ValueError("Event loop is closed")))
    assert len(reports) == 2

    message = "Task exception was never retrieved\nfuture: <Task exception=ValueError('%s')>"
    logging.getLogger("asyncio").error(message, "DATA_LOSS [tensorstore_spec=...]")
    assert not caplog.records
    logging.getLogger("asyncio").error(message, "mine")
    assert len(caplog.records) == 1


def test_none_that_is_whole(tmp_path):
    state = {"w": jnp.arange(5.0)}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"no checkpoint that can be read \(steps: none"):
            checkpoints.restore(abstract(state))
        checkpoints.save(1, state, {})
        checkpoints.wait()
        spoil(tmp_path / "ckpt/last/1")
        with pytest.raises(CheckpointError, match=r"can be read \(steps: 1\)"):
            checkpoints.restore(abstract(state))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": jnp.zeros((3, 2))}, r"w is float32\[2, 3\], expected float32\[3, 2\]"),
        ({"w": jnp.zeros((2, 3), jnp.bfloat16)}, r"expected bfloat16\[2, 3\].*another config"),
        ({"v": jnp.zeros((2, 3))}, r"1 arrays not in it \(v\); 1 only in it \(w\)"),
    ],
)
def test_another_state_is_an_error_and_nothing_is_moved(tmp_path, other, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros((2, 3))}, {})
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(abstract(other))
        assert checkpoints.latest() == 1


def test_another_layout_is_an_error(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("jvae.runs.checkpoint.LAYOUT", "flat-0")
            checkpoints.save(1, {"w": jnp.zeros(2)}, {})
        with pytest.raises(CheckpointError, match="parameter layout 'flat-0'"):
            checkpoints.meta()


def test_another_kind_of_key_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0, impl="rbg")}, {})
        with pytest.raises(CheckpointError, match="key"):
            checkpoints.restore({"key": jax.random.key(0)})


def test_read_only_leaves_a_running_save_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    running = tmp_path / "ckpt/last/2.orbax-checkpoint-tmp"
    running.mkdir()
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.latest() == 1 and reader.meta()["step"] == 1
    assert running.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, {"w": jnp.zeros(2)}, {})
        checkpoints.wait()
        assert not running.exists() and checkpoints.latest() == 2


def test_reading_where_nothing_is(tmp_path):
    with Checkpoints(tmp_path / "missing", read_only=True) as reader:
        assert reader.latest() is None and reader.best_metric() == math.inf
    assert not (tmp_path / "missing").exists()


def test_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot open checkpoints in .*file/ckpt"):
        Checkpoints(tmp_path / "file")


def test_meta_that_json_cannot_hold(tmp_path):
    with (
        pytest.raises(CheckpointError, match="cannot save step 1|a save in .* failed"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, {"w": jnp.zeros(2)}, {"f": len})


KILLED = """
import os, signal, sys, jax.numpy as jnp
from jvae.runs.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": jnp.full(100_000, 1.0)}, {})
checkpoints.wait()
for step in range(2, 50):
    checkpoints.save(step, {"w": jnp.full(100_000, float(step))}, {})
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    with Checkpoints(tmp_path) as checkpoints:
        step = checkpoints.latest()
        assert step in (3, 4)
        got, meta = checkpoints.restore({"w": jax.ShapeDtypeStruct((100_000,), jnp.float32)})
        assert meta["step"] == step and np.all(np.asarray(got["w"]) == step)
        checkpoints.save(5, got, {})
        checkpoints.wait()
        assert not list((tmp_path / "ckpt").rglob("*tmp*"))
