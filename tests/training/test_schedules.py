import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jvae.errors import ConfigError
from jvae.runs import schedules

FIXTURE = Path(__file__).parents[1] / "parity/optimus/metrics_seed0.npz"


@pytest.fixture(scope="module")
def stored():
    with np.load(FIXTURE) as file:
        return dict(file) | {"config": json.loads(str(file["meta/config_json"]))}


def values(schedule, n):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(n)))


@pytest.mark.parametrize("index", range(3))
def test_cyclic_zero_linear_equals_released(stored, index):
    args = stored["config"]["zero_linear"][index]
    want = stored[f"schedule/zero_linear_{index}"]
    got = values(schedules.cyclic_zero_linear(start=0.0, **args), len(want))
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", range(2))
def test_cyclic_linear_equals_released(stored, index):
    args = dict(stored["config"]["linear"][index])
    want = stored[f"schedule/linear_{index}"]
    args["ratio_increase"] = args.pop("ratio")
    got = values(schedules.cyclic_linear(start=0.0, **args), len(want))
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)


def by_hand(n_iter, start, stop, n_cycle, ratio_increase, ratio_zero):
    """The definition on a whole array: each cycle is laid over what the one before left."""
    beta = np.full(n_iter, stop)
    period = n_iter / n_cycle
    flat = np.full(len([i for i in range(n_iter) if i < period * ratio_zero]), start)
    line = start + (stop - start) / (period * ratio_increase) * np.arange(n_iter)
    shape = np.concatenate([flat, line[line <= stop]])
    for cycle in range(n_cycle):
        place = beta[int(cycle * period) :]
        place[: len(shape)] = shape[: len(place)]
    return beta


@pytest.mark.parametrize(
    "args",
    [
        (101, 0.0, 1.0, 7, 0.5, 0.3),
        (97, 0.2, 0.9, 4, 0.25, 0.0),
        (50, 0.0, 0.5, 3, 0.9, 0.6),  # the line does not fit in its cycle
        (64, 0.0, 1.0, 1, 0.25, 1.0),  # never leaves the start
        (10, 0.3, 0.3, 2, 0.5, 0.5),
    ],
)
def test_cyclic_zero_linear_equals_walk(args):
    got = values(schedules.cyclic_zero_linear(*args), args[0])
    np.testing.assert_allclose(got, by_hand(*args), atol=1e-6, rtol=0)


def test_counts_of_one_cycle():
    got = values(schedules.cyclic_zero_linear(1000, 0.0, 1.0, 1, 0.25, 0.5), 1200)
    assert np.sum(got == 0) == 501
    assert np.argmax(got > 0) == 501 and abs(got[501] - 0.004) < 1e-7
    assert np.argmax(got == 1.0) == 750
    assert np.all(got[750:] == 1.0)


def test_past_the_end_is_stop():
    late = schedules.cyclic_zero_linear(100, 0.0, 0.7, 4, 0.5, 0.25)
    np.testing.assert_allclose(late(100), 0.7, rtol=1e-6)
    np.testing.assert_allclose(late(2**30), 0.7, rtol=1e-6)
    np.testing.assert_allclose(schedules.linear(10, 0.0, 0.7)(11), 0.7, rtol=1e-6)


def test_large_steps_are_exact():
    schedule = schedules.cyclic_linear(2**28, 0.0, 1.0, 2**18, 1.0)
    assert float(schedule(2**27 + 513)) == 513 / 1024


def test_linear_and_constant():
    np.testing.assert_allclose(values(schedules.linear(4, 1.0, 3.0), 6), [1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_allclose(values(schedules.constant(0.5), 3), [0.5] * 3)


def test_build_reads_its_keys_and_defaults_the_length():
    section = ConfigDict(
        {
            "kind": "cyclic_zero_linear",
            "n_iter": None,
            "start": 0.0,
            "stop": 1.0,
            "n_cycle": 1,
            "ratio_increase": 0.25,
            "ratio_zero": 0.5,
        }
    )
    assert np.argmax(values(schedules.build(section, 40), 40) == 1.0) == 30
    section.kind = "constant"
    assert float(schedules.build(section, 40)(3)) == 1.0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "cyclic"}, "expected one of constant"),
        ({"kind": "constant", "stopp": 1.0}, "unknown key 'stopp'"),
        ({"kind": "linear", "start": 0.0}, "needs the key 'stop'"),
        ({"kind": "linear", "start": 0.0, "stop": 1.0, "n_iter": 0}, "n_iter = 0"),
    ],
)
def test_build_names_what_is_wrong(section, message):
    with pytest.raises(ConfigError, match=message):
        schedules.build(section, 10)


@pytest.mark.parametrize(
    "changes, final",
    [
        (dict(kind="constant"), 0),
        (dict(kind="linear", n_iter=30), 30),
        (dict(kind="linear", n_iter=300), 100),  # never in this run
        (dict(kind="linear", start=0.3, stop=0.3), 0),
        (dict(ratio_zero=0.5, ratio_increase=0.25), 75),
        (dict(n_cycle=4, ratio_zero=0.5, ratio_increase=0.25), 95),  # 75 + 13 + 7
        (dict(n_cycle=4, ratio_zero=0.5, ratio_increase=2.0), 100),  # cut by the end
        (dict(n_cycle=2, ratio_zero=0.0, ratio_increase=0.5, n_iter=40), 30),
    ],
)
def test_the_step_from_which_a_schedule_is_final(changes, final):
    base = dict(
        kind="cyclic_zero_linear",
        start=0.0,
        stop=1.0,
        n_cycle=1,
        ratio_zero=0.5,
        ratio_increase=0.5,
    )
    cfg = base | changes
    assert schedules.final_from(cfg, 100) == final
    after = values(schedules.build(cfg, 100), 400)
    assert (after[final:100] == after[399]).all() and (final == 0 or after[final - 1] != after[399])
