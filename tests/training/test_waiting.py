"""Lines of a long wait: at its beginning, while it lasts, at its end."""

import logging
import time

from jvae.training import waiting


def test_a_wait_is_announced_and_reported(caplog, monkeypatch):
    monkeypatch.setattr(waiting, "EVERY_S", 0.02)
    monkeypatch.setattr(waiting, "WORTH_S", 0.05)
    with caplog.at_level(logging.INFO), waiting.announced("compiling the step"):
        assert caplog.messages == ["compiling the step ..."]
        time.sleep(0.1)
    first, *between, last = caplog.messages
    assert between and all(line == "compiling the step: 0 s so far" for line in between)
    assert last == "compiling the step: done in 0 s"


def test_a_short_wait_is_one_line_and_a_later_one_none(caplog):
    with caplog.at_level(logging.INFO):
        with waiting.announced("compiling the step"):
            pass
        with waiting.announced("compiling the step", enabled=False):
            pass
    assert caplog.messages == ["compiling the step ..."]
