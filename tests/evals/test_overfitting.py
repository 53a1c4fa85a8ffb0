"""The alarm for models that learn their training text by heart."""

import json
import logging

import pytest

from jvae.cli.main import main
from jvae.data import grammar
from jvae.evals import overfitting
from jvae.evals.overfitting import Overfit
from jvae.runs.metrics import read_lines

SEEN = dict(sentences=2_000.0, limit=0.5, stalled=0)


def test_text_by_heart_raises_the_alarm():
    # A reconstruction of 6.9 nats in training and 58.1 in validation, 12 tokens, passed in silence.
    pair = (6.9 / 12, 58.1 / 12)
    alarm = overfitting.find(pair, pair, None, **SEEN)
    assert alarm is not None and alarm.rise is None
    assert alarm.gap == pytest.approx((58.1 - 6.9) / 12)
    assert "a token of validation costs 4.27 nats more" in str(alarm)
    # A healthy run; and so few training sentences that the difference says nothing.
    assert overfitting.find((5.2, 5.4), (5.3, 5.5), (5.4, 5.6), **SEEN) is None
    assert overfitting.find(pair, pair, None, **SEEN | dict(sentences=8.0)) is None
    assert overfitting.find(pair, pair, None, **SEEN | dict(limit=5.0)) is None


def test_a_bound_that_rises_while_training_falls_raises_the_alarm():
    rec, best = (3.0, 3.3), (3.2, 3.4)
    alarm = overfitting.find(rec, (3.0, 3.5), best, **SEEN | dict(stalled=2))
    assert alarm is not None and alarm.gap is None and alarm.rise == pytest.approx(0.1)
    assert str(alarm).startswith("the validation -ELBO is 0.10 nats per token above its lowest")
    for bound, stalled in (
        ((3.0, 3.5), 1),  # a single check
        ((3.0, 3.42), 2),  # hardly a rise
        ((3.3, 3.5), 2),  # training rises too
    ):
        assert overfitting.find(rec, bound, best, **SEEN | dict(stalled=stalled)) is None
    assert overfitting.find(rec, (3.0, 3.5), None, **SEEN | dict(stalled=2)) is None


def test_the_note_says_which_step_is_meant():
    lines = [
        {"step": 10, "valid/rec": 3.0},
        {"step": 20, "valid/rec": 3.0} | Overfit(0.7, None).row(),
        {"step": 30, "valid/rec": 3.0} | Overfit(0.9, 0.2).row(),
    ]
    assert overfitting.note(lines[:1], 10) == ""
    note = overfitting.note(lines, 30)
    assert note.startswith(
        "Overfitting: at step 30, the one that is measured, a token of validation"
    )
    assert "0.90 nats" in note and "0.20 nats" in note and "train.patience" in note
    before = overfitting.note(lines, 10)
    assert before.startswith("Overfitting from step 20 on (") and "measured is step 10" in before


@pytest.mark.slow
def test_log_and_table_say_it(tmp_path, caplog):
    for split, count in (("train", 30), ("valid", 40), ("test", 20)):
        lines = [f"{sentence.text}\n" for sentence in grammar.corpus(split, count)]
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    folder = tmp_path / "run"
    flags = dict(
        train=dict(steps=160, log_every=20, check_every=20, tensorboard="false"),
        data=dict(batch_rows=8, tokenizer_kind="word", cache=tmp_path / "cache")
        | {split: tmp_path / f"{split}.txt" for split in ("train", "valid", "test")},
        optim=dict(lr=0.02, warmup_steps=0),
        evals=dict(samples=1, sentences=4, generate=4, interpolations=1),
        mesh=dict(data=1),
    )
    words = [f"--config.{a}.{b}={v}" for a, values in flags.items() for b, v in values.items()]
    small = [f"--config.model.decoder.{key}=32" for key in ("width", "hidden")]
    small.append("--config.model.decoder.dropout=0.0")
    with caplog.at_level(logging.WARNING):
        assert main(["--config=lm:lstm", *words, *small, f"--workdir={folder}"]) == 0
    warnings = [
        record.getMessage() for record in caplog.records if "overfitting" in record.getMessage()
    ]
    assert len(warnings) == 1 and "early (train.patience)" in warnings[0]
    lines = read_lines(folder / "metrics.jsonl")
    gaps = [line[overfitting.GAP_KEY] for line in lines if overfitting.GAP_KEY in line]
    assert len(gaps) > 1 and gaps[-1] > 0.5
    notes = json.loads((folder / "eval/test.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("Overfitting")]
