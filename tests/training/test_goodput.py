"""Every second is counted once, under what the host did."""

from jvae.training.goodput import SAVING, STARTING, TRAINING, WAITING, Goodput


def test_seconds_are_split_and_add_up():
    now = [100.0]
    spent = Goodput(clock=lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    passes(2)
    spent.enter(TRAINING)
    passes(5)
    with spent.of(SAVING):
        passes(1)
        with spent.of(WAITING):
            passes(0.5)
        passes(1)
    passes(0.5)
    line = spent.line()
    assert spent.seconds == {STARTING: 2.0, TRAINING: 5.5, SAVING: 2.0, WAITING: 0.5}
    assert line.startswith("goodput of 10.0 s: training 5.5 s (55 %), ")
    assert line.endswith("waiting for data 0.5 s (5 %)")
