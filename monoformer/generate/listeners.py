"""Whose events are whose, where several calls share one engine.

Knows nothing of the engine or of turns. Invariant: an event comes to the one who waits for its session, whoever made
the step; once a session has ended nobody waits for it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeAlias

from monoformer.generate.session import Event

Box: TypeAlias = deque[Event]
"""Events of one listener that it has not seen yet."""


class Listeners:
    """Everybody who waits for something. One thread at a time, but for `leave`."""

    def __init__(self) -> None:
        self._boxes: dict[int, Box] = {}  # by session
        self._left: SimpleQueue[int] = SimpleQueue()

    def wait(self, number: int, box: Box) -> None:
        """Put the events of a session into a box from now on."""
        self._boxes[number] = box

    def tell(self, events: Iterable[Event]) -> None:
        """Put events where they are waited for; what nobody waits for is gone."""
        for event in events:
            box = self._boxes.get(event.session)
            if box is not None:
                box.append(event)
            if event.kind == "end":
                self._boxes.pop(event.session, None)

    def fail(self, error: str) -> None:
        """End everybody's waiting with an error."""
        numbers = [*self._boxes]
        self.tell(Event(session=number, kind="end", reason="error", error=error) for number in numbers)

    def leave(self, numbers: Iterable[int]) -> None:
        """Wait for these sessions no longer. At any moment: the garbage collector may close a stream within a step."""
        for number in numbers:
            self._left.put(number)

    def left(self) -> Iterator[int]:
        """The sessions that were left since this was asked last."""
        while True:
            try:
                number = self._left.get_nowait()
            except Empty:
                return
            self._boxes.pop(number, None)
            yield number
