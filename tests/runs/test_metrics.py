import io
import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jvae.errors import CheckpointError
from jvae.runs import metrics
from jvae.runs.metrics import Ratio


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(path):
    return (path / "metrics.jsonl").read_text().splitlines()


def test_sums_add_up_and_divide_once():
    total = None
    for batch in ([1.0, 2.0], [6.0]):
        sums = {
            "nll": Ratio(jnp.sum(jnp.array(batch)), jnp.float32(len(batch))),
            "none": Ratio(jnp.float32(0), jnp.float32(0)),
        }
        total = metrics.add(total, sums)
    assert total is not None and isinstance(total["nll"].sum, jax.Array)
    got = metrics.ratios(total)
    assert got["nll"] == 3.0 and math.isnan(got["none"])


def test_lines_have_step_first_and_null_for_what_is_not_finite(tmp_path):
    with metrics.Writer(tmp_path, stream=io.StringIO()) as writer:
        writer.write(1, {"loss": 2.5, "tokens": 7, "bad": math.nan, "worse": -math.inf, "why": "x"})
        writer.write(2, {"loss": None})
    assert lines(tmp_path) == [
        '{"step": 1, "loss": 2.5, "tokens": 7, "bad": null, "worse": null, "why": "x"}',
        '{"step": 2, "loss": null}',
    ]
    assert metrics.read_lines(tmp_path / "metrics.jsonl")[0]["tokens"] == 7


def test_flush_returns_after_all_lines_are_there(tmp_path):
    writer = metrics.Writer(tmp_path, stream=io.StringIO())
    for step in range(200):
        writer.write(step, {"loss": float(step)})
    writer.flush()
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == list(range(200))
    writer.close()
    writer.close()
    writer.flush()


@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', '{"step": 2'])
def test_resumed_file_equals_that_of_an_unbroken_run(tmp_path, tail):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(folder, steps, resume_step):
        with metrics.Writer(folder, stream=io.StringIO(), resume_step=resume_step) as writer:
            for step in steps:
                writer.write(step, {"loss": 1 / step})
                writer.write(step, {"valid/loss": 2 / step})

    run(whole, range(1, 7), 0)
    run(broken, range(1, 5), 0)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(tail)
    run(broken, range(3, 7), 2)
    assert lines(whole) == lines(broken)
    assert not list(broken.glob("*.draft"))


def test_from_the_start_again_nothing_old_remains(tmp_path):
    for loss in (1.0, 2.0):
        with metrics.Writer(tmp_path, stream=io.StringIO()) as writer:
            writer.write(1, {"loss": loss})
    assert lines(tmp_path) == ['{"step": 1, "loss": 2.0}']


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}'])
def test_foreign_file_is_left_alone(tmp_path, line):
    text = '{"step": 1}\n' + line + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: not a line of metrics"):
        metrics.Writer(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write metrics under .*file"):
        metrics.Writer(tmp_path / "file")


def test_failure_on_the_thread_reaches_the_loop(tmp_path):
    writer = metrics.Writer(tmp_path, stream=io.StringIO())
    writer.write(1, {"loss": object()})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="cannot write metrics: .*not JSON serializable"):
        writer.flush()
    with pytest.raises(CheckpointError, match="cannot write metrics"):
        writer.write(2, {"loss": 1.0})
    with pytest.raises(CheckpointError, match="cannot write metrics"):
        writer.close()


def test_tensorboard_gets_finite_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    with metrics.Writer(tmp_path, stream=io.StringIO()) as writer:
        writer.write(1, {"loss": 2.5, "bad": math.nan, "text": "x"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data = file.read_bytes()
    assert b"loss" in data and b"bad" not in data


def test_without_tensorboard(tmp_path, monkeypatch):
    for number, wanted in enumerate((False, True), 1):
        config = ConfigDict({"train": {"tensorboard": wanted, "wandb": ""}})
        with metrics.Writer(
            tmp_path, stream=io.StringIO(), resume_step=number - 1, config=config
        ) as writer:
            writer.write(number, {"loss": 2.5})
        assert len(lines(tmp_path)) == number and not (tmp_path / "tensorboard").exists()
        monkeypatch.setitem(sys.modules, "tensorboardX", None)


def test_inactive_writer_does_nothing(tmp_path):
    stream = Terminal()
    with metrics.Writer(tmp_path / "w", stream=stream, active=False) as writer:
        writer.write(1, {"loss": 2.5})
        writer.progress(1)
        writer.flush()
    assert not (tmp_path / "w").exists() and stream.getvalue() == ""


def test_plain_console(tmp_path):
    stream = io.StringIO()
    with metrics.Writer(tmp_path, stream=stream, total_steps=10) as writer:
        writer.progress(1)
        writer.write(5, {"loss": 1.23456789, "tokens": 1000000, "kl": None})
        writer.write(6, {"train/loss": 2.0, "train/kl": 1.0, "train/time/tokens_per_s": 7.0})
    assert stream.getvalue() == (
        "step 5/10  loss 1.235 tokens 1000000 kl None\n"
        "step 6/10  train loss 2 kl 1  train/time tokens_per_s 7\n"
    )
