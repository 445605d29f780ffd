"""The engine in a thread of its own, and many asyncio consumers in front of it.

    batcher = Batcher(pipeline.engine)
    async with await batcher.submit(request) as events:
        async for event in events: ...

Requests from anywhere advance together. Whoever leaves its events early gives its slots back; a preview arrives
decoded, as the `image` of its progress event. Knows nothing of HTTP. Invariant: only the worker thread touches the
engine, its tokenizer and its autoencoder; prompts are cut into tokens by a thread before it, so that neither an event
loop computes nor a long prompt holds anybody up.
"""

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Condition, Lock, Thread

import torch

from monoformer.generate.engine import Engine
from monoformer.generate.session import Event, Request, Session
from monoformer.serve.stream import Stream
from monoformer.serve.tokens import token_bytes

logger = logging.getLogger(__name__)

BACKLOG = 32
"""Events that a slow consumer may leave unread before it gets no more previews."""

FAILURES = 3
"""Failed steps, with no request served between them, after which the engine is held to be broken."""


class QueueFullError(Exception):
    """No room for another request now; `retry_after` is a guess in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)  # so that it can go from process to process
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"the server is busy; try again in {self.retry_after} seconds"


class ClosingError(Exception):
    """The batcher takes no more requests."""


@dataclass(frozen=True)
class Stats:
    """What a batcher is doing, and has done since it began."""

    waiting: int
    """Requests without a slot."""
    active: int
    """Requests that are read, written or drawn."""
    slots: int
    free: int
    cached: int
    """Tokens that the cache holds."""
    room: int
    """Tokens that it could hold."""
    read: int
    """Tokens of prompts that passed through the network."""
    written: int
    """Tokens of text."""
    pictures: int
    steps: int
    """Steps of the engine."""
    failures: int
    """Steps that raised."""
    ended: dict[str, int]
    """Requests by the reason why they ended."""


class Batcher:
    """What runs one engine for everybody."""

    def __init__(self, engine: Engine, *, capacity: int = 128) -> None:
        """At most `capacity` requests are served or wait at once."""
        if capacity < 1:
            raise ValueError(f"a batcher's capacity must be at least 1 request, but is {capacity}")
        self.engine, self.capacity = engine, capacity
        self.words: dict[int, bytes] = {engine.tokenizer.bos: b""}
        """The tokens that the scores of events have named, as parts of a text."""
        self._open = 0
        self._lock = Lock()
        self._ends = Condition(self._lock)
        self._closing = self._sealed = self._stopped = self._broken = False
        self._admission, self._door = engine.admission.beside(), ThreadPoolExecutor(1, "admission")
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._places: dict[int, tuple[Stream, int, float]] = {}  # by session: its stream, its number there, its start
        self._ended: Counter[str] = Counter()
        self._past = self._written = self._pictures = self._steps = self._failures = self._in_a_row = 0
        self._seconds = 1.0  # that a request takes, a moving mean
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether the worker lives and its engine still works."""
        return self._thread.is_alive() and not self._broken

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.is_healthy and not self._closing and self._open < self.capacity

    async def submit(self, *requests: Request) -> Stream:
        """Queue requests, all or none; their events, in which `session` is the request's number among them.

        Raises QueueFullError, ClosingError, or ValueError for a request that cannot be served.
        """
        with self._lock:
            if self._closing or not self.is_healthy:
                raise ClosingError("the server is shutting down" if self._closing else "the engine has failed")
            if len(requests) > self.capacity:
                raise ValueError(f"{len(requests)} at once are more than the {self.capacity} that this server takes")
            if self._open + len(requests) > self.capacity:
                raise QueueFullError(self._retry_after())
            self._open += len(requests)
            opening = asyncio.get_running_loop().run_in_executor(self._door, self._sessions, requests)
        try:
            sessions = await opening
            stream = Stream(len(requests), leave=lambda stream: self._inbox.put(partial(self._cancel, stream)))
            with self._lock:
                if self._sealed or not self.is_healthy:
                    raise ClosingError("the server is shutting down")
                self._inbox.put(partial(self._admit, stream, sessions))
        except BaseException:
            self._release(len(requests))
            raise
        try:
            await stream.admitted
        except BaseException:
            stream.close()
            raise
        return stream

    def stats(self) -> Stats:
        """Figures of this moment."""
        slots = self.engine.reader.slots
        waiting, active = len(self.engine.waiting), len(self.engine.active)
        return Stats(
            waiting=max(waiting, self._open - active),  # what the worker has not seen yet waits too
            active=active,
            slots=len(slots.filled),
            free=len(slots.free),
            cached=sum(slots.filled),
            room=len(slots.filled) * self.engine.config.context,
            read=self.engine.reader.tokens_read,
            written=self._written,
            pictures=self._pictures,
            steps=self._steps,
            failures=self._failures,
            ended=dict(self._ended),
        )

    async def drain(self, *, seconds: float) -> int:
        """Take nothing more, finish what runs, and stop; the number of requests that were cut off after `seconds`."""
        return await asyncio.to_thread(self.close, seconds=seconds)

    def close(self, *, seconds: float = 0.0) -> int:
        """The same, for callers without an event loop; what is cut off ends with the reason `cancelled`."""
        with self._lock:
            self._closing = True
            self._ends.wait_for(lambda: not (self._open and self.is_healthy), timeout=seconds)
            left, self._sealed = self._open, True  # no request is put into the inbox after this
            self._inbox.put(self._stop)
        self._thread.join(timeout=60)
        self._door.shutdown(wait=False)
        return left

    def _sessions(self, requests: Sequence[Request]) -> list[Session]:
        """The requests, ready for the engine: long prompts are cut into tokens beside the worker, not by it."""
        return [self._admission.open(request) for request in requests]

    def _retry_after(self) -> int:
        """Seconds until a request of those before this one will probably have ended."""
        waits = self._seconds * self._open / max(1, len(self.engine.active))
        return min(60, max(1, math.ceil(waits / 4)))

    # Everything below runs in the worker.

    @torch.no_grad()
    def _work(self) -> None:
        try:
            while not self._stopped:
                while (command := self._command(wait=not self._places and not self._stopped)) is not None:
                    command()
                if self._places:
                    self._deliver(self._step())
        except Exception:
            logger.exception("the worker of the engine ended")
            self._broken = True
            self._deliver(self._abandon())

    def _command(self, *, wait: bool) -> Callable[[], None] | None:
        try:
            return self._inbox.get(block=wait)
        except Empty:
            return None

    def _step(self) -> list[Event]:
        self._steps += 1
        try:
            events = self.engine.step()
        except Exception:
            logger.exception("a step of the engine failed; its requests end with an error")
            self._failures, self._in_a_row = self._failures + 1, self._in_a_row + 1
            return self._abandon()
        return events

    def _abandon(self) -> list[Event]:
        """End every session: after a failed step nothing is known of them."""
        error = "the server failed while it worked on this request; try again"
        ends = [Event(session=number, kind="end", reason="error", error=error) for number in self._places]
        try:
            for number in self._places:
                self.engine.cancel(number)
        except Exception:
            logger.exception("the engine could not end its sessions")
            self._broken = True
        self._broken |= self._in_a_row >= FAILURES
        return ends

    def _admit(self, stream: Stream, sessions: Sequence[Session]) -> None:
        numbers, now = [self.engine.add(session) for session in sessions], time.monotonic()
        self._places |= {number: (stream, place, now) for place, number in enumerate(numbers)}
        stream.admit()

    def _cancel(self, stream: Stream) -> None:
        """Its consumer went away."""
        ends = [self.engine.cancel(number) for number, (owner, *_) in self._places.items() if owner is stream]
        self._deliver([end for end in ends if end is not None])

    def _stop(self) -> None:
        self._stopped = True
        ends = [self.engine.cancel(number) for number in self._places]
        self._deliver([end for end in ends if end is not None])

    def _deliver(self, events: Sequence[Event]) -> None:
        """Hand events over, one call an event loop and stream, and keep the books."""
        found: defaultdict[Stream, list[Event]] = defaultdict(list)
        for event in events:
            if event.session not in self._places:  # of a session that was abandoned
                continue
            stream, place, start = self._places[event.session]
            found[stream].append(self._prepared(event, place, previews=stream.backlog < BACKLOG))
            self._pictures += event.kind == "image"
            if event.kind == "end":
                del self._places[event.session]
                self._ended[event.reason or ""] += 1
                self._past += event.usage.written
                self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
                if event.reason not in ("error", "cancelled"):
                    self._in_a_row = 0
                self._release(1)
        self._written = max(self._written, self._past + sum(session.written for session in self.engine.active))
        for stream, own in found.items():
            if not stream.receive(own):  # its event loop is gone
                self._cancel(stream)

    def _prepared(self, event: Event, place: int, *, previews: bool) -> Event:
        """The event as its consumer sees it."""
        for score in event.scores:
            for token in {score.token, *(token for token, _ in score.top)} - self.words.keys():
                tokenizer = self.engine.tokenizer
                piece = str(tokenizer.backend.convert_ids_to_tokens(token))
                self.words[token] = token_bytes(piece, tokenizer.decode([token]))
        image = event.image
        if event.preview is not None and previews and event.step < event.steps:  # the last one is the picture itself
            try:
                image = event.preview.image()
            except Exception:
                logger.exception("a preview could not be decoded")
        return replace(event, session=place, image=image, preview=None)

    def _release(self, count: int) -> None:
        with self._lock:
            self._open -= count
            self._ends.notify_all()
