"""Log lines around silent work that takes minutes, such as a compilation."""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EVERY_S = 30.0  # seconds between two lines of one wait
WORTH_S = 5.0  # shorter work gets no line at its end


@contextmanager
def announced(what: str, enabled: bool = True) -> Generator[None, None, None]:
    """Logs the start of `what`, every 30 seconds that it is still running, and how long it took.

    A separate thread logs, since the compiler does not hold Python's lock.

    Args:
      enabled: False logs nothing; used for all calls but the first.
    """
    if not enabled:
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
