"""Events on their way from a worker to one consumer in an event loop.

Knows nothing of the engine. Invariant: events arrive in order, and every request's last one is of kind `end`, unless
the consumer leaves before.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from monoformer.generate.session import Event, Reason


class Stream:
    """The events of requests that were submitted together; leaving it early cancels what is not done."""

    def __init__(self, count: int, *, leave: Callable[["Stream"], None]) -> None:
        """Of `count` requests, for a consumer in the running event loop; `leave` is called if it goes early."""
        self.loop = asyncio.get_running_loop()
        self.admitted: asyncio.Future[None] = self.loop.create_future()
        """Done when the engine has taken the requests, or refused them."""
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._left, self._leave = count, leave
        self._open = set(range(count))
        self._sent = self._taken = 0  # each is counted by one side alone

    @property
    def backlog(self) -> int:
        """Events that are not read yet."""
        return self._sent - self._taken

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        if not self._left:
            raise StopAsyncIteration
        event = await self._queue.get()
        self._taken += 1
        self._left -= event.kind == "end"
        return event

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nobody reads on: what is not done is cancelled."""
        if self._left:
            self._left = 0
            self._leave(self)

    # What the worker calls.

    def admit(self) -> None:
        """The requests are in the engine."""
        self._call(lambda: None if self.admitted.done() else self.admitted.set_result(None))

    def refuse(self, error: Exception) -> None:
        """The requests are not served."""
        self._left = 0
        self._call(lambda: None if self.admitted.done() else self.admitted.set_exception(error))

    def receive(self, events: Sequence[Event]) -> bool:
        """Take events; false where the event loop is gone."""
        self._sent += len(events)
        return self._call(lambda: self._put(events))

    def end(self, reason: Reason, *, error: str = "") -> None:
        """Nothing more comes: end what has not ended."""
        self._call(
            lambda: self._put([Event(session=n, kind="end", reason=reason, error=error) for n in sorted(self._open)])
        )

    def _put(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind == "end":
                self._open.discard(event.session)
            self._queue.put_nowait(event)

    def _call(self, run: Callable[[], object]) -> bool:
        try:
            self.loop.call_soon_threadsafe(run)
        except RuntimeError:  # the loop is closed
            return False
        return True
