"""What is made before it is asked for, in threads.

Knows nothing of what is made. Invariant: items come in the order, and errors at the place, that they would have without
threads.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING = 4
"""Items that wait for each of several threads."""


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, readers: int) -> Generator[Result]:
    """What `work` makes of each item, in their order. More than one of the `readers` are threads that run ahead.

    They help where Python lets others run: in decoding and resizing pictures, and in waiting for files. What `work`
    raises is raised in its item's place, and so is what asking for an item raises.
    """
    if readers < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        left = _submitted(pool, work, iter(items))
        waiting = deque(islice(left, WAITING * readers))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(islice(left, 1))
                yield found
        finally:
            for future in waiting:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterator[Item]
) -> Iterator[Future[Result]]:
    """The work on each item; last, a failure to get one."""
    try:
        for item in items:
            yield pool.submit(work, item)
    except Exception as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed


class Ahead(Generic[Item]):
    """An iterator of which a daemon thread makes up to `count` items before they are asked for; 0: none, no thread.

    What making an item raised is raised in its place, and each time after that.
    """

    def __init__(self, items: Iterator[Item], *, count: int, stop: threading.Event) -> None:
        self._items = items
        self._failure: BaseException | None = None
        self._room = threading.Semaphore(count)
        self._ready: queue.SimpleQueue[Item | _Failure] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if count > 0:
            arguments = (items, self._room, self._ready, stop)
            self._thread = threading.Thread(target=_make_ahead, args=arguments, name="loader", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._failure is None:
            item = self._ready.get() if self._thread is not None else _next(self._items)
            self._room.release()
            if not isinstance(item, _Failure):
                return item
            self._failure = item.error
        raise self._failure

    def join(self) -> None:
        """Wait for the thread, which was told to stop."""
        if self._thread is not None:
            self._thread.join()


def _next(items: Iterator[Item]) -> Item | _Failure:
    try:
        return next(items)
    except BaseException as error:
        return _Failure(error)


def _make_ahead(
    items: Iterator[Item],
    room: threading.Semaphore,
    ready: "queue.SimpleQueue[Item | _Failure]",
    stop: threading.Event,
) -> None:
    """The thread: makes an item whenever there is room, until told to stop or until something fails."""
    while not stop.is_set():
        if room.acquire(timeout=0.1):
            item = _next(items)
            ready.put(item)
            if isinstance(item, _Failure):
                return
    ready.put(_Failure(StopIteration()))  # for the thread that may wait for it
