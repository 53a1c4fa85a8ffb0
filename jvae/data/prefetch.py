"""Runs an iterator ahead of its consumer in a thread."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Prefetch(Iterator[T], Generic[T]):
    """Runs an iterator in a thread, at most `depth` items ahead; its exceptions are re-raised here.

    Close it, or use it in a `with` block. Otherwise the thread stops when it is garbage-collected.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._queue: queue.Queue = queue.Queue(max(depth, 1))
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(make, self._queue, self._stop), name="jvae-batches", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _Raised):
            self.close()
            raise item.error
        return item

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread; no further items are returned."""
        self._stop.set()
        self._thread.join()


class _Raised(NamedTuple):
    error: BaseException


def _fill(
    make: Callable[[], Iterator[object]],
    items: queue.Queue,
    stop: threading.Event,
) -> None:
    # Holds no reference to the Prefetch object, which otherwise could never be collected.
    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.05)
            except queue.Full:
                continue

    try:
        for item in make():
            put(item)
            if stop.is_set():
                return
        put(_Raised(StopIteration()))
    except BaseException as error:  # noqa: BLE001 (re-raised in the consumer)
        put(_Raised(error))
