"""Log lines around work that takes minutes without a word, such as a compilation."""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EVERY_S = 30.0  # between two lines of one wait
WORTH_S = 5.0  # what took less needs no line at its end


@contextmanager
def announced(what: str, wanted: bool = True) -> Generator[None, None, None]:
    """Says that `what` begins, every so often that it still runs, and how long it took.

    A thread of its own speaks, as the compiler holds no lock of Python.

    Args:
      wanted: False does nothing, for all calls but the first.
    """
    if not wanted:
        yield
        return
    begin, over = time.monotonic(), threading.Event()

    def speak() -> None:
        while not over.wait(EVERY_S):
            log.info("%s: %.0f s so far", what, time.monotonic() - begin)

    log.info("%s ...", what)
    thread = threading.Thread(target=speak, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if (seconds := time.monotonic() - begin) >= WORTH_S:
        log.info("%s: done in %.0f s", what, seconds)
