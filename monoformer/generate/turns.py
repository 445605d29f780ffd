"""Calls that share one engine: one at a time makes a step, and each hears of its own sessions.

Knows nothing of what a step does. Invariant: no call holds the lock while its caller has an event in hand, so a stream
that is open stops nobody; what a call began ends with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from threading import Lock

from monoformer.document import Document
from monoformer.generate.admission import Admission
from monoformer.generate.listeners import Box, Listeners
from monoformer.generate.session import Event, FailedRequestsError, Request, Session


class Shared(ABC):
    """What advances sessions, for several calls at once: those of threads, and one beside an open stream."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.turn, self.listeners = admission, Lock(), Listeners()

    @abstractmethod
    def add(self, request: Request | Session) -> int:
        """Queue a request, or one that is open already; its session number."""

    @abstractmethod
    def step(self) -> list[Event]:
        """Advance all sessions; what happened."""

    @abstractmethod
    def cancel(self, number: int) -> Event | None:
        """End a session now, between two steps."""

    @abstractmethod
    def reset(self) -> None:
        """Drop all sessions; whoever waits for one is told."""

    def run(self, requests: Sequence[Request]) -> list[Document]:
        """Serve all requests; what each one made, in order, as documents of the new segments.

        Calls of several threads take turns; one that is broken off, as by Ctrl-C, leaves nothing behind.
        Raises RefusedRequestsError, a ValueError, when one cannot be served: all or none; FailedRequestsError when one
        failed, after all have ended.
        """
        return [end.made for end in self._serve(requests, kind="end") if end.made is not None]

    def likelihoods(self, requests: Sequence[Request]) -> list[tuple[float, ...]]:
        """The log-likelihoods of each request's choices. Raises as `run` does."""
        return [told.likelihoods for told in self._serve(requests, kind="text")]

    def _serve(self, requests: Sequence[Request], *, kind: str) -> list[Event]:
        """All events of a kind, in the order of the requests."""
        with closing(self.listen(requests)) as events:
            found = [event for event in events if event.kind in (kind, "end")]
        found.sort(key=lambda event: event.session)
        last = [event for event in found if event.kind == "end"]
        if any(end.reason == "error" for end in last):
            raise FailedRequestsError(last)
        return [event for event in found if event.kind == kind]

    def listen(self, requests: Sequence[Request]) -> Generator[Event, None, None]:
        """The events of requests until all have ended; whoever stops listening ends them.

        Every call's steps advance all sessions; events of another call's wait for its own listener. Raises
        RefusedRequestsError at once.
        """
        with self.turn:  # the tokenizer has state
            sessions = self.admission.open_all(requests)
        return self._follow(sessions)

    def _follow(self, sessions: Sequence[Session]) -> Generator[Event, None, None]:
        box, left = Box(), len(sessions)
        try:
            with self.turn:
                for session in sessions:
                    self.listeners.wait(self.add(session), box)
            while left:
                with self.turn:
                    self._advance(box)
                while box:
                    event = box.popleft()
                    left -= event.kind == "end"
                    yield event
        finally:
            if left:
                self.listeners.leave([session.number for session in sessions])
                if self.turn.acquire(blocking=False):  # else whoever has it does so before the next step
                    try:
                        self._dismiss()
                    finally:
                        self.turn.release()

    def _advance(self, box: Box) -> None:
        """Step, unless another call's steps brought something already. What breaks off a step ends everybody's."""
        try:
            self._dismiss()
            if not box:
                self.listeners.tell(self.step())
        except BaseException:
            self.reset()
            raise

    def _dismiss(self) -> None:
        """End the sessions that nobody listens to any more."""
        for number in self.listeners.left():
            self.cancel(number)
