"""A stream tells what a call returns, as it happens, and leaves nothing behind when nobody listens any more."""

from dataclasses import replace

import pytest

from monoformer.document import Document, Text
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
