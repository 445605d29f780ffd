"""What callers of the pipeline give: every usual form means the same, and what cannot be meant says what to give."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from monoformer.document import Document, Image, Text
from monoformer.pipeline import Pipeline
from tests import tiny

ARRAY = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
PICTURE = PILImage.fromarray(ARRAY)
LEFT = np.repeat([[True] * 4 + [False] * 4], 8, axis=0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.pretrained())


def bits(pictures: list[PILImage.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_every_form_means_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    drawn = bits(pipeline.generate_images("red", size=(8, 8), seed=3))
    sizes: tuple[Any, ...] = (([8, 8], np.int64(3)), (8, [3]), (np.int64(8), (np.int32(3),)))
    for size, seed in sizes:
        assert bits(pipeline.generate_images("red", size=size, seed=seed)) == drawn
    said = pipeline.caption(PICTURE)
    for given in (path, str(path), ARRAY, [PICTURE], ARRAY[None]):
        assert pipeline.caption(given) == said
    words = pipeline.generate_text("the", max_tokens=np.int64(20))[0]
    assert len(words) > 3
    stopped = pipeline.generate_text("the", max_tokens=20, stop=words[2:4])[0]
    assert stopped == words[: words.index(words[2:4])]
    assert pipeline.generate_text("the", max_tokens=20, stop=[words[2:4]])[0] == stopped
    assert pipeline.answer(PICTURE, "what?", choices="red") == ["red"]
    one = PILImage.fromarray(LEFT.astype(np.uint8) * 255)
    edited = bits(pipeline.edit([PICTURE, PICTURE], "blue", mask=one))
    masks: tuple[Any, ...] = (LEFT, [one, LEFT], LEFT.astype(np.uint8) * 255, LEFT.astype(np.float32))
    for mask in masks:
        assert bits(pipeline.edit([PICTURE, ARRAY], "blue", mask=mask)) == edited
    right = bits(pipeline.edit([PICTURE, PICTURE], "blue", mask=[LEFT, ~LEFT]))
    assert right[0] == edited[0]
    assert np.array_equal(np.frombuffer(right[1], np.uint8).reshape(8, 8, 3)[LEFT], ARRAY[LEFT]), "its own mask"
    assert len(pipeline.generate_images("red", picture=[PICTURE, PICTURE], strength=0.5)) == 2


Call = Callable[[Pipeline], Any]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.generate_images(["a"], picture=[], strength=0.5), "no picture in the list"),
        (lambda p: p.generate_images(["a", "b", "c"], picture=[PICTURE] * 2, strength=0.5), "2 pictures but 3 texts"),
        (lambda p: p.edit([PICTURE] * 2, "a", mask=[LEFT] * 3), "2 pictures but 3 masks"),
        (lambda p: p.edit(PICTURE, "a", mask=LEFT * 2.0), "a mask must be a picture, or an array"),
        (lambda p: p.generate_images("a", size=(8, 8, 8)), "height and a width"),
        (lambda p: p.generate_images("a", size="8x8"), "height and a width"),
        (lambda p: p.generate_images("a", size=[64, 64]), "64x64 pictures .height x width.; sizes are 8x8"),
        (lambda p: p.generate_images("a", seed=None), "seed is None; leave it out"),
        (lambda p: p.generate_images("a", seed=1.5), "seed must be a whole number"),
        (lambda p: p.generate_images("a", seed=[1, 2]), "1 items but 2 seeds"),
        (lambda p: p.generate_images("a", guidance=None), "guidance is None; leave it out"),
        (lambda p: p.generate_images("a", steps=2.5), "generate.steps must be int, but is 2.5"),
        (lambda p: p.generate_images("a", steps="2"), "generate.steps must be int"),
        (lambda p: p.generate_images("a", guidanc=2), "did you mean 'guidance'"),
        (lambda p: p.generate_text("a", steps=5), "steps has no effect where only text is wanted"),
        (lambda p: p.generate_text("a", guidance=7.0), "guidance has no effect where only text"),
        (lambda p: p.caption(PICTURE, negative="b"), "negative has no effect where only text"),
        (lambda p: p.generate_text("a", size=8), "size has no effect where only text"),
        (lambda p: p.generate_images("a", temperature=1.0), "temperature has no effect where only a picture is wanted"),
        (lambda p: p.generate_images("a", max_tokens=3), "max_tokens has no effect where only a picture"),
        (lambda p: p.edit(PICTURE, "a", stop="x"), "stop has no effect where only a picture"),
        (lambda p: p.generate_text("a", choices=["b"], max_tokens=1), "max_tokens has no effect on an answer that is"),
        (lambda p: p.generate_text("a", stop=""), "stop has an empty string"),
        (lambda p: p.generate_text("a", stop=["b", ""]), "stop has an empty string"),
        (lambda p: p.generate_images(5), "a text or a list of texts, but is 5"),
        (lambda p: p.generate_images([5]), "must be texts, but one is 5"),
        (lambda p: p.caption("nowhere.png"), "there is no file nowhere.png"),
        (lambda p: p.caption(ARRAY / 255), r"array \(height, width, 3\) of uint8"),
        (lambda p: p.caption(None), "pictures must be a picture or a list"),
        (lambda p: p.caption([None]), "a picture must be one of PIL's"),
        (lambda p: p.generate(Document((Text("x"),)), want="foo"), "want must be one of text, image, any"),
        (lambda p: p.generate(["x"]), r"documents are Document\("),
        (lambda p: p.generate(Document((Text("x"),)), edits=[]), "1 documents but 0 edits"),
        (lambda p: p.chat([Text("a", "bot")]), "a role is one of system, user, assistant"),  # type: ignore[arg-type]
        (lambda p: p.chat("hello"), r"are Text\(...\) and Image\(...\), but one is 'h'"),
        (lambda p: p.chat([Image.from_pil(PICTURE)]), "a chat needs roles"),
    ],
)
def test_what_cannot_be_meant_says_what_to_give(pipeline: Pipeline, call: Call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(pipeline)


def test_what_may_matter_and_what_asks_for_nothing_passes(pipeline: Pipeline) -> None:
    assert len(pipeline.generate(Document((Text("a"),)), steps=2, max_tokens=2, temperature=1.0)) == 1
    assert pipeline.generate_text("a", choices=["b", "c"], temperature=1.0, stop=())[0] in ("b", "c")
    own = replace(pipeline.pretrained.generate, stop=("",), temperature=1.0, top_k=3)
    stored = Pipeline(replace(pipeline.pretrained, generate=own))
    assert len(stored.generate_images("a")) == len(stored.generate_text("a")) == 1, "a model's own are for all"
