"""Engines in other processes, on this machine or others: replicas of Ray Serve, each with a batcher of its own.

    with deploy(model, config, replicas=2) as replicas: ...

`Replicas` stands where a `Batcher` does. Knows nothing of HTTP. Invariant: a request that was accepted is served by
some replica, or ends with an error that says that its replica was lost; it begins anew elsewhere while nothing of it
was told to the client.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from monoformer.config.serve import ServeConfig
from monoformer.generate.session import Event, Request
from monoformer.serve.batcher import Batcher, ClosingError, QueueFullError, Stats
from monoformer.serve.stream import Stream

logger = logging.getLogger(__name__)

TRIES = 5
"""How often a request begins anew when its replica is lost."""

LOST = "the replica that served this request was lost; send it again"


class Replica:
    """One engine; Ray Serve makes one in each process."""

    def __init__(
        self,
        model: str,
        *,
        device: str,
        slots: int,
        capacity: int,
        budget: int = 0,
        compile: bool = False,
        autoencoder: str | None = None,
    ) -> None:
        from monoformer.pipeline import Pipeline

        pipeline = Pipeline.from_pretrained(
            model, device=device, slots=slots, budget=budget, compile=compile, autoencoder=autoencoder
        )
        pipeline.prepare_pictures()
        self.batcher = Batcher(pipeline.engine, capacity=capacity)

    async def serve(self, requests: Sequence[Request]) -> AsyncIterator[tuple[list[Event], dict[int, bytes]]]:
        """Events as they come, with the tokens that they name; the first has none: the requests are accepted."""
        async with await self.batcher.submit(*requests) as stream:
            bos = self.batcher.engine.tokenizer.bos
            yield [], {bos: self.batcher.words[bos]}
            async for event in stream:
                events = [event]
                while stream.backlog:
                    events.append(await anext(stream))
                scores = [score for event in events for score in event.scores]
                tokens = {token for score in scores for token in (score.token, *(token for token, _ in score.top))}
                yield events, {token: self.batcher.words[token] for token in tokens}

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and starts another one after an error."""
        if not self.batcher.is_healthy:
            raise RuntimeError("the engine has failed")


class Replicas:
    """What serves requests somewhere."""

    def __init__(self, handle: Any, *, capacity: int) -> None:
        """By a handle of Ray Serve's; at most `capacity` requests are served or wait at once."""
        self.capacity = capacity
        self.words: dict[int, bytes] = {}
        self._handle = handle.options(stream=True)
        self._open = self._pictures = self._lost = 0
        self._closing = False
        self._ended: Counter[str] = Counter()
        self._read = self._written = 0
        self._tasks: dict[Stream, asyncio.Task[None]] = {}

    @property
    def is_healthy(self) -> bool:
        """Ray Serve starts lost replicas anew."""
        return True

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken now."""
        return not self._closing and self._open < self.capacity

    async def submit(self, *requests: Request) -> Stream:
        """Queue requests at one replica, all or none; as `Batcher.submit`."""
        if self._closing:
            raise ClosingError("the server is shutting down")
        if len(requests) > self.capacity:
            raise ValueError(f"{len(requests)} at once are more than the {self.capacity} that this server takes")
        if self._open + len(requests) > self.capacity:
            raise QueueFullError(1)
        stream = Stream(len(requests), leave=self._leave)
        self._open += len(requests)
        task = asyncio.create_task(self._serve(stream, requests))
        self._tasks[stream] = task
        task.add_done_callback(lambda _: self._forget(stream, len(requests)))
        try:
            await stream.admitted
        except BaseException:
            stream.close()
            raise
        return stream

    def stats(self) -> Stats:
        """Figures of this moment; those of single engines are zero."""
        return Stats(
            waiting=0, active=self._open, slots=0, free=0, cached=0, room=0, read=self._read, written=self._written,
            pictures=self._pictures, steps=0, failures=self._lost, ended=dict(self._ended),
        )  # fmt: skip

    async def drain(self, *, seconds: float) -> int:
        """Take nothing more, finish what runs; the number of requests that were cut off after `seconds`."""
        self._closing = True
        if self._tasks:
            await asyncio.wait([*self._tasks.values()], timeout=seconds)
        left = self._open
        for stream, task in list(self._tasks.items()):
            task.cancel()
            stream.end("cancelled")
        return left

    def _leave(self, stream: Stream) -> None:
        if stream in self._tasks:
            self._tasks[stream].cancel()
            self._ended["cancelled"] += 1

    def _forget(self, stream: Stream, count: int) -> None:
        self._tasks.pop(stream, None)
        self._open -= count

    async def _serve(self, stream: Stream, requests: Sequence[Request]) -> None:
        """Hand over what a replica sends; begin anew where one is lost before it sent anything."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        told = False
        for attempt in range(TRIES):
            answers = self._handle.serve.remote(requests)
            try:
                async for events, words in answers:
                    self.words |= words
                    stream.admit()
                    told |= bool(events)
                    self._note(events)
                    stream.receive(events)
                return
            except asyncio.CancelledError:
                answers.cancel()
                raise
            except (RayActorError, RayServeException) as error:
                logger.warning("a replica was lost: %s", str(error).partition("\n")[0])
                self._lost += 1
                if told:
                    break
                await asyncio.sleep(0.2 * attempt)
            except Exception as error:
                if stream.admitted.done():
                    break
                stream.refuse(getattr(error, "cause", error))
                return
        stream.admit()
        stream.end("error", error=LOST)

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            self._pictures += event.kind == "image"
            if event.kind == "end":
                self._ended[event.reason or ""] += 1
                self._read += event.usage.read
                self._written += event.usage.written


@contextmanager
def deploy(
    model: str, config: ServeConfig, *, replicas: int, most: int, options: Mapping[str, Any], **replica: Any
) -> Iterator[Replicas]:
    """Start replicas of a model, from `replicas` to `most` of them as the load asks; they end with the block.

    `options` are those of Ray's actors (CPUs and GPUs of each), `replica` those of `Replica`.
    """
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"replicas need the extra 'scale': pip install 'monoformer[scale]' ({error.name})") from None
    began = not ray.is_initialized()
    if began:
        ray.init(include_dashboard=False, log_to_driver=False)
    scaling = {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": replica["slots"] / 2}
    deployment = serve.deployment(
        Replica,
        name="engine",
        max_ongoing_requests=replica["capacity"],
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.drain_seconds,
        autoscaling_config=scaling,
        ray_actor_options=dict(options),
    )
    handle = serve.run(deployment.bind(model, **replica), name="monoformer", route_prefix=None)
    try:
        yield Replicas(handle, capacity=config.capacity * most)
    finally:
        serve.shutdown()
        if began:
            ray.shutdown()
