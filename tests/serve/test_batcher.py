"""The batcher: what many consumers get is what the engine makes; leaving, failing, refusing and draining."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from monoformer.autoencoder import Pixels
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Event, Request
from monoformer.serve.batcher import BACKLOG, Batcher, ClosingError, QueueFullError
from tests import tiny

MADE = tiny.pretrained()
DRAW = Document((Text("a red circle", "user"),))
WRITE = Document((Text("the large"),))


class Brittle(Engine):
    """An engine whose steps can be made to fail."""

    fails = 0

    def step(self) -> list[Event]:
        if self.fails and self.active:
            self.fails -= 1
            raise RuntimeError("the device is gone")
        return super().step()


def request(want: Any = "text", *, seed: int = 0, previews: int = 0, **settings: Any) -> Request:
    settings = {
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": seed,
        "logit_bias": ((MADE.tokenizer.eos, -100.0),),
    } | settings
    document = WRITE if want == "text" else DRAW
    return Request(document=document, want=want, settings=replace(MADE.generate, **settings), previews=previews)


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    found = Batcher(Brittle(MADE, Pixels(), slots=4), capacity=6)
    yield found
    found.close()


def serve(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def collect(batcher: Batcher, *requests: Request) -> list[Event]:
    async with await batcher.submit(*requests) as events:
        return [event async for event in events]


async def until(holds: Any) -> None:
    while not holds():  # noqa: ASYNC110 (it is another thread's)
        await asyncio.sleep(0.005)


def test_what_many_get_is_what_the_engine_makes(batcher: Batcher) -> None:
    requests = [request(seed=1), request("image", seed=2, previews=1), request(seed=3), request("image", seed=4)]
    alone = Engine(MADE, Pixels(), slots=4).run(requests)

    async def together() -> list[list[Event]]:
        pair = collect(batcher, *requests[:2])
        return list(await asyncio.gather(pair, *(collect(batcher, one) for one in requests[2:])))

    (pair, third, fourth) = serve(together())
    ends = [event for event in [*pair, *third, *fourth] if event.kind == "end"]
    made = [next(e.made for e in pair if e.kind == "end" and e.session == n) for n in (0, 1)]
    made += [third[-1].made, fourth[-1].made]
    assert [document.segments[0].text for document in (made[0], made[2])] == [
        document.segments[0].text for document in (alone[0], alone[2])
    ]
    for one, many in ((alone[1], made[1]), (alone[3], made[3])):
        assert (one.images[0].pixels.int() - many.images[0].pixels.int()).abs().max() <= 1
    assert all(event.usage.read and event.usage.written + event.usage.drawn for event in ends)
    previews = [event for event in pair if event.kind == "progress"]
    assert [event.step for event in previews] == [1, 2, 3, 4]
    assert [event.image is not None for event in previews] == [True, True, True, False]
    stats = batcher.stats()
    assert (stats.waiting, stats.active, stats.free, stats.pictures) == (0, 0, stats.slots, 2)
    assert stats.written == sum(event.usage.written for event in ends)
    assert stats.ended == {"length": 2, "image": 2}


def test_leaving_early_frees_the_slots(batcher: Batcher) -> None:
    async def leave() -> None:
        other = asyncio.create_task(collect(batcher, request(seed=5)))
        async with await batcher.submit(request(max_tokens=100), request("image", steps=1000)) as events:
            await anext(events)
        await until(lambda: batcher.stats().ended.get("cancelled") == 2)
        assert (await other)[-1].reason == "length"
        abandoned = asyncio.create_task(collect(batcher, request("image", steps=1000)))
        await until(lambda: batcher.stats().active)
        abandoned.cancel()
        await until(lambda: batcher.stats().ended.get("cancelled") == 3)

    serve(leave())
    assert batcher.stats().free == 4


def test_no_room_and_what_cannot_be_served(batcher: Batcher) -> None:
    async def fill() -> None:
        long = request("image", steps=1000)
        async with await batcher.submit(*[long] * 5):
            with pytest.raises(QueueFullError) as full:
                await batcher.submit(request(), request())
            assert 1 <= full.value.retry_after <= 60
            with pytest.raises(ValueError, match="not trained to draw"):
                await batcher.submit(replace(long, size=(40, 40)))
        await until(lambda: batcher.stats().ended.get("cancelled") == 5)
        with pytest.raises(ValueError, match="not trained to draw"):
            await batcher.submit(request(), replace(long, size=(40, 40)))
        with pytest.raises(ValueError, match="more than the 6"):
            await batcher.submit(*[long] * 7)
        assert len(await collect(batcher, *[request()] * 6)) >= 6, "no room was lost"

    serve(fill())


def test_a_failed_step_ends_what_ran_and_nothing_else(batcher: Batcher) -> None:
    engine = batcher.engine
    assert isinstance(engine, Brittle)

    async def fail() -> None:
        engine.fails = 1
        found = await asyncio.gather(*(collect(batcher, request(seed=n)) for n in range(3)))
        assert "error" in {events[-1].reason for events in found}
        assert (await collect(batcher, request()))[-1].reason == "length"
        assert batcher.is_healthy
        engine.fails = 3
        for _ in range(3):
            assert (await collect(batcher, request()))[-1].reason == "error"
        assert not batcher.is_healthy
        with pytest.raises(ClosingError):
            await batcher.submit(request())

    serve(fail())
    assert batcher.stats().failures == 4
    assert batcher.stats().free == 4


def test_draining_finishes_what_runs_or_reports_it(batcher: Batcher) -> None:
    async def finish() -> None:
        running = asyncio.create_task(collect(batcher, request()))
        await until(lambda: batcher.stats().active)
        assert await batcher.drain(seconds=30) == 0
        assert (await running)[-1].reason == "length"
        with pytest.raises(ClosingError):
            await batcher.submit(request())

    async def cut() -> None:
        other = Batcher(Engine(MADE, Pixels(), slots=4))
        running = asyncio.create_task(collect(other, request("image", steps=1000)))
        await until(lambda: other.stats().active)
        assert await other.drain(seconds=0) == 1
        assert (await running)[-1].reason == "cancelled"

    serve(finish())
    serve(cut())


def test_a_slow_consumer_loses_previews_only(batcher: Batcher) -> None:
    steps = 4 * BACKLOG

    async def slow() -> list[Event]:
        async with await batcher.submit(request("image", steps=steps, previews=1)) as events:
            await until(lambda: batcher.stats().ended)
            return [event async for event in events]

    events = serve(slow())
    assert [event.step for event in events if event.kind == "progress"] == [*range(1, steps + 1)]
    assert 0 < sum(event.image is not None for event in events if event.kind == "progress") <= BACKLOG + 4
    assert events[-2].kind == "image"
