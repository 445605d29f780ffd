"""A stream tells what a call returns, as it happens, and leaves nothing behind when nobody listens any more."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from monoformer.document import Document, Text
from monoformer.generate.session import Event
from monoformer.pipeline import Pipeline
from tests import tiny
from tests.laws.test_generate import DRAW, opens_a_picture


@pytest.fixture
def pipeline() -> Pipeline:
    made = opens_a_picture(tiny.pretrained(), DRAW)
    settings = replace(made.generate, steps=3, max_tokens=20)
    return Pipeline(replace(made, generate=settings), slots=4, deterministic=True)  # the second time, too


def contents(made: Document | None) -> list[object]:
    assert made is not None
    return [part.text if isinstance(part, Text) else part.pixels.tolist() for part in made.segments]


def test_a_stream_tells_what_a_call_returns(pipeline: Pipeline) -> None:
    answer = pipeline.chat(DRAW, seed=3)
    events = list(pipeline.stream(DRAW, seed=3, previews=1))
    assert events[-1].kind == "end"
    assert contents(events[-1].made) == contents(answer)
    told = [event.image.pixels.tolist() for event in events if event.image is not None]
    assert told == [image.pixels.tolist() for image in answer.images]
    assert told, "it draws"
    steps = [event for event in events if event.kind == "progress"]
    assert [(event.step, event.steps) for event in steps[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert all(event.preview is not None for event in steps)
    words = "".join(event.text for event in events)
    assert words == "".join(part.text for part in answer.segments if isinstance(part, Text))


def test_whoever_stops_listening_leaves_nothing_behind(pipeline: Pipeline) -> None:
    stream = pipeline.stream(DRAW, seed=3)
    assert next(stream).kind == "progress"
    stream.close()
    assert len(pipeline.engine.free) == 4
    assert not pipeline.engine.active
    assert contents(pipeline.chat(DRAW, seed=3)) == contents(list(pipeline.stream(DRAW, seed=3))[-1].made)
    next(pipeline.stream(DRAW, seed=3))  # forgotten at once
    assert len(pipeline.engine.free) == 4


def test_a_stream_that_cannot_be_served_says_so_at_once(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="a chat needs roles"):
        pipeline.stream(Document((Text("red"),)))
    with pytest.raises(ValueError, match="too many for the model's context"):
        pipeline.stream(Document((Text("red circle " * 200, "user"),)))


def test_other_calls_go_on_while_a_stream_is_open(pipeline: Pipeline) -> None:
    expected, words = contents(pipeline.chat(DRAW, seed=3)), pipeline.generate_text("red", max_tokens=5)
    events = []
    for event in pipeline.stream(DRAW, seed=3, previews=1):
        if len(events) in (1, 3):
            assert pipeline.generate_text("red", max_tokens=5) == words
            assert contents(pipeline.chat(DRAW, seed=3)) == expected
        events.append(event)
    assert contents(events[-1].made) == expected
    assert [event.step for event in events if event.kind == "progress"][:3] == [1, 2, 3], "nothing is lost or doubled"
    kept = pipeline.stream(DRAW, seed=3)
    told = [next(kept)]
    assert pipeline.generate_text("red", max_tokens=5) == words, "it is open, and nobody listens"
    assert contents([*told, *kept][-1].made) == expected
    assert (sorted(pipeline.engine.free), pipeline.engine.active) == ([0, 1, 2, 3], [])


def test_an_open_stream_waits_in_line_where_slots_are_few(pipeline: Pipeline) -> None:
    streams = [pipeline.stream(DRAW, seed=3) for _ in range(4)]
    first = [next(stream) for stream in streams]
    assert len(pipeline.generate_text(["red"] * 6, max_tokens=2)) == 6
    ends = [list(stream)[-1] for stream in streams]
    assert len({str(contents(end.made)) for end in ends}) == 1
    assert len({event.session for event in first}) == 4
    assert len(pipeline.engine.free) == 4


def test_a_stream_that_is_closed_while_the_engine_works_is_gone_before_the_next_step(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pipeline.stream(DRAW, seed=3)
    next(stream)
    step, engine = pipeline.engine.step, pipeline.engine

    def collects() -> list[Event]:  # as the garbage collector may close it at any moment of a step
        stream.close()
        return step()

    monkeypatch.setattr(engine, "step", collects)
    assert pipeline.generate_text("red", max_tokens=3)
    assert len(engine.free) == 4
    monkeypatch.undo()
    loop: list[Any] = [pipeline.stream(DRAW, seed=3)]
    loop.append(loop)
    next(loop[0])
    del loop
    gc.collect()
    assert (len(engine.free), engine.active) == (4, [])


def test_what_breaks_off_a_step_ends_the_streams_that_are_open(pipeline: Pipeline) -> None:
    stream = pipeline.stream(DRAW, seed=3)
    next(stream)

    def interrupted() -> list[Event]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate_text("red")
    (end,) = stream
    assert (end.kind, end.reason) == ("end", "error")
    assert "broken off" in end.error
    stream = pipeline.stream(DRAW, seed=3)
    next(stream)
    pipeline.load_weights(pipeline.pretrained.model.state_dict())
    assert [event.reason for event in stream] == ["error"]
    assert len(pipeline.engine.free) == 4


def test_streams_of_several_threads_take_turns(pipeline: Pipeline) -> None:
    expected = contents(pipeline.chat(DRAW, seed=3))

    def listen(_: int) -> list[object]:
        return contents(list(pipeline.stream(DRAW, seed=3))[-1].made)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(listen, range(8))) == [expected] * 8
    assert len(pipeline.engine.free) == 4
