"""Where the tabs hand their requests in: settings, the batcher, and plain words for what goes wrong.

Invariant: a user never sees a traceback, and whoever stops or leaves has no work done any longer.
"""

import functools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from html import escape
from typing import Any, ParamSpec, TypeAlias

from monoformer.config.generate import GenerateConfig, changed
from monoformer.config.serve import Limits
from monoformer.document import Document, Image, Text
from monoformer.generate.session import Event, Request
from monoformer.pipeline import Pipeline
from monoformer.serve.batcher import Batcher, ClosingError, QueueFullError
from monoformer.serve.replicas import Replicas

logger = logging.getLogger(__name__)

PAUSE = 0.1
"""Seconds between two pictures of progress: more would only keep the browser busy."""

Arguments = ParamSpec("Arguments")
Results: TypeAlias = AsyncGenerator[Any, None]


class FailedError(Exception):
    """The engine took a request, but could not finish it."""


class Desk:
    """One model, as the page uses it, within the limits of the server."""

    def __init__(self, pipeline: Pipeline, batcher: Batcher | Replicas, limits: Limits | None = None) -> None:
        self.pipeline, self.batcher, self.limits = pipeline, batcher, limits or Limits()
        own, most = pipeline.pretrained.generate, self.limits
        self.defaults = replace(own, max_tokens=min(own.max_tokens, most.max_tokens), steps=min(own.steps, most.steps))
        self.sizes = pipeline.pretrained.model.config.image_sizes

    def settings(self, **changes: Any) -> GenerateConfig:
        """The model's own settings with these changes."""
        return changed(self.defaults, changes)

    async def follow(self, *requests: Request) -> AsyncIterator[Event]:
        """What happens to these requests, the number of each among them as `session`.

        Raises QueueFullError, ClosingError, FailedError, or ValueError for a request that cannot be served.
        """
        self._check(requests)
        async with await self.batcher.submit(*requests) as events:
            async for event in events:
                if event.reason == "error":
                    raise FailedError(event.error)
                if event.reason == "cancelled":
                    raise ClosingError("the server is shutting down")
                yield event

    def _check(self, requests: Sequence[Request]) -> None:
        """Refuse what is beyond the limits."""
        limits = self.limits
        for request in requests:
            words = [segment.text for segment in request.document.segments if isinstance(segment, Text)]
            asked = {
                "pictures at once": (len(requests), limits.count),
                "denoising steps": (request.settings.steps if request.want != "text" else 0, limits.steps),
                "characters": (sum(map(len, words)), limits.prompt),
                "pictures to read": (len(request.document.images), limits.images),
            }
            for name, (count, most) in asked.items():
                if count > most:
                    raise ValueError(f"this server takes {most} {name} at most, but these are {count}")

    async def describe(self, image: Image) -> AsyncIterator[str]:
        """What the model says of a picture, growing."""
        said = ""
        request = Request(document=Document((image,)), want="text", settings=self.defaults)
        async for event in self.follow(request):
            if event.kind == "text":
                said += event.text
                yield said.strip()


class Pace:
    """Says when the page is to be told of progress again: as often as an eye can follow."""

    def __init__(self) -> None:
        self.told = 0.0

    def is_due(self) -> bool:
        """Whether enough time has passed since this was last true."""
        now = time.monotonic()
        if now - self.told < PAUSE:
            return False
        self.told = now
        return True


def friendly(handler: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
    """The handler of an event of the page, with its errors as messages that the page shows."""

    @functools.wraps(handler)
    async def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Results:
        import gradio as gr

        try:
            async with aclosing(handler(*args, **kwargs)) as results:
                async for result in results:
                    yield result
        except Exception as error:
            title, text = explain(error)
            raise gr.Error(escape(text), title=title, print_exception=False) from error

    return guarded


def explain(error: Exception) -> tuple[str, str]:
    """A title and a sentence for the user; what is not the user's business goes to the log."""
    said = str(error).removeprefix("generate.")
    text = said[:1].upper() + said[1:] + ("" if said.endswith((".", "?", "!")) else ".")
    match error:
        case ValueError():
            return "That does not work", text
        case QueueFullError():
            return "Many people are drawing", text
        case ClosingError():
            return "The server is closing", text
        case FailedError():
            return "The model could not finish", text
        case _:
            logger.error("the page failed", exc_info=error)
            return "Something went wrong", "The server's log says what. Try once more."
