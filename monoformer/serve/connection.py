"""Server-sent events, and clients that go away.

Invariant: however an answer ends, its stream of events is closed, so that nothing is computed for nobody.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from monoformer.generate.session import Event
from monoformer.serve.errors import ApiError
from monoformer.serve.metrics import Meters
from monoformer.serve.stream import Stream

T = TypeVar("T")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""So that no proxy keeps events back."""

DONE = "data: [DONE]\n\n"


class EventAnswer(StreamingResponse):
    """An answer that is sent while it is made."""

    def __init__(self, lines: AsyncIterator[str], *, stream: Stream) -> None:
        """Of `lines`, each a whole event made from those of `stream`."""
        super().__init__(lines, media_type="text/event-stream", headers=HEADERS)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; when the client goes away what is not done is cancelled."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def line(answer: BaseModel, *, event: str = "") -> str:
    """A server-sent event of the fields that were set."""
    data = answer.model_dump_json(exclude_unset=True)
    return f"event: {event}\ndata: {data}\n\n" if event else f"data: {data}\n\n"


async def while_connected(request: Request, stream: Stream, work: Coroutine[Any, Any, T]) -> T:
    """What `work` makes of the stream; when the client goes away what is not done is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client went away", status=499)
        return await task
    finally:
        task.cancel()
        gone.cancel()
        stream.close()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def watched(events: Stream, meters: Meters) -> AsyncIterator[Event]:
    """The events; the first word and the first preview are timed, and a failure is raised as an error."""
    start = time.perf_counter()
    seen: set[str] = set()
    async for event in events:
        first = {"text": "token", "progress": "token"}.get(event.kind)
        for name in (first, "preview" if event.kind == "progress" and event.image is not None else None):
            if name and name not in seen:
                seen.add(name)
                meters.first(name, time.perf_counter() - start)
        if event.reason == "error":
            first_line = event.error.partition("\n")[0]
            raise ApiError(f"the request failed: {first_line[:300]}", status=500, code="failed")
        if event.reason == "cancelled":
            raise ApiError("the server is shutting down; send the request again", status=503, code="unavailable")
        yield event
