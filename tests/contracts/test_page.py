"""The page's functions, without a browser: what is asked for, what is shown, what is said when it does not work."""

import asyncio
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from monoformer.config.serve import Limits
from monoformer.document import Document, Image, Text, answer_document, describe_document, draw_document, edit_document
from monoformer.generate.session import Event, Request
from monoformer.pipeline import Pipeline
from monoformer.serve.batcher import Batcher, QueueFullError
from monoformer.serve.page import find_examples
from monoformer.serve.page.board import Board
from monoformer.serve.page.desk import Desk, FailedError, explain
from monoformer.serve.page.drawing import chosen_path, keep_picture
from monoformer.serve.page.inside import Inside, chips, write_documents
from monoformer.serve.page.pictures import LARGEST, enlarged, open_picture, painted, png_bytes, shrunk, tiles
from monoformer.serve.page.talk import Answer, Memory, read_talk
from monoformer.serve.page.wishes import read_picture, wish_drawings, wish_edit
from tests import tiny


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    pipeline = Pipeline(tiny.pretrained(), slots=4)
    batcher = Batcher(pipeline.engine, capacity=3)
    yield Desk(pipeline, batcher)
    batcher.close()


def picture(seed: int = 0, size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    return tiny.image(Random(seed), size=size).to_pil()


def brushed(box: tuple[int, int, int, int], size: tuple[int, int]) -> PILImage.Image:
    layer = PILImage.new("RGBA", size, (0, 0, 0, 0))
    layer.paste((255, 0, 128, 255), box)
    return layer


async def drawn(desk: Desk, requests: list[Any]) -> Board:
    board = Board([str(at) for at in range(len(requests))])
    async for event in desk.follow(*requests):
        board.take(event)
    return board


def test_drawings_are_those_of_the_pipeline_and_their_files_say_how(desk: Desk, tmp_path: Path) -> None:
    requests = wish_drawings(desk, " a red circle ", count=2, size="8 x 8", seed=5, steps=3, guidance=1.5)
    board = asyncio.run(drawn(desk, requests))
    expected = desk.pipeline.generate_images(["a red circle"] * 2, size=(8, 8), seed=5, steps=3, guidance=1.5)
    assert [image.to_pil().tobytes() for image in board.finished] == [image.tobytes() for image in expected]
    assert (board.step, board.steps) == ([3, 3], [3, 3])
    assert "0 · step 3 of 3" in board.html()
    with PILImage.open(keep_picture(board.finished[1], requests[1], tmp_path)) as kept:
        said = json.loads(kept.info["monoformer"])
        assert kept.tobytes() == expected[1].tobytes()
    known = {"prompt": "a red circle", "seed": 6, "steps": 3, "guidance": 1.5, "height": 8, "width": 8}
    assert {**said, **known} == said
    assert "temperature" not in said


def test_a_chinese_prompt_is_drawn_and_kept_as_it_was_typed(desk: Desk, tmp_path: Path) -> None:
    (request,) = wish_drawings(desk, "画一个红色的圆", count=1, size="8 x 8", seed=5, steps=2, guidance=1.0)
    board = asyncio.run(drawn(desk, [request]))
    (expected,) = desk.pipeline.generate_images("画一个红色的圆", size=(8, 8), seed=5, steps=2, guidance=1.0)
    assert board.finished[0].to_pil().tobytes() == expected.tobytes()
    with PILImage.open(keep_picture(board.finished[0], request, tmp_path)) as kept:
        assert json.loads(kept.info["monoformer"])["prompt"] == "画一个红色的圆"


def test_an_edit_keeps_what_is_not_painted(desk: Desk) -> None:
    shown = enlarged(picture(), side=64)
    before, request = wish_edit(desk, shown, "make it blue", layers=[brushed((32, 0, 64, 64), shown.size)], steps=2)
    assert torch.equal(before.pixels, Image.from_pil(picture()).pixels)
    assert [type(segment) for segment in request.document.segments] == [Image, Text]
    (after,) = asyncio.run(drawn(desk, [request])).finished
    assert torch.equal(after.pixels[:, :, :4], before.pixels[:, :, :4])
    assert not torch.equal(after.pixels[:, :, 4:], before.pixels[:, :, 4:])


def test_the_page_keeps_to_the_limits_of_the_server(desk: Desk) -> None:
    limits = Limits(steps=3, count=2, prompt=10, images=1, pixels=100, max_tokens=5)
    own = Desk(desk.pipeline, desk.batcher, limits)
    assert (own.settings().steps, own.settings().max_tokens) == (3, 5)
    asked: dict[str, Any] = {"prompt": "a", "count": 1, "size": "8 x 8", "seed": 0, "steps": 2}
    for match, changes in (("1 and 3 steps", {"steps": 4}), ("1 and 2 pictures", {"count": 3})):
        with pytest.raises(ValueError, match=match):
            wish_drawings(own, **{**asked, **changes})
    with pytest.raises(ValueError, match="more than 100"):
        read_picture(own, picture(size=(16, 16)))
    shown = own.pipeline.context_image(picture())
    for match, segments in (
        ("10 characters at most, but these are 11", (Text("a" * 11),)),
        ("1 pictures to read at most, but these are 2", (shown, shown)),
    ):
        request = Request(document=Document(segments), want="text", settings=own.settings())
        with pytest.raises(ValueError, match=match):
            asyncio.run(drawn(own, [request]))


def test_what_cannot_be_asked_is_said(desk: Desk) -> None:
    for match, changes in {
        "prompt is empty": {"prompt": "  "},
        "between 1 and 8 pictures": {"count": 9},
        "between 1 and 250 steps": {"steps": 0},
        "such as 64 x 64": {"size": "large"},
    }.items():
        with pytest.raises(ValueError, match=match):
            wish_drawings(desk, **{"prompt": "a", "count": 1, "size": "8 x 8", "seed": 0, "steps": 2, **changes})
    for match, given in {
        "no picture yet": (None, "red", {}),
        "what is to change": (picture(), " ", {}),
        "ignores the picture": (picture(), "a circle", {"describes": True}),
    }.items():
        with pytest.raises(ValueError, match=match):
            wish_edit(desk, given[0], given[1], **given[2])
    with pytest.raises(ValueError, match="there is no picture yet"):
        chosen_path([], 0)


def test_errors_are_sentences(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    long = wish_drawings(desk, "red " * 200, count=1, size="8 x 8", seed=0)
    wrong = wish_drawings(desk, "red", count=1, size="64 x 64", seed=0)
    many = wish_drawings(desk, "red", count=4, size="8 x 8", seed=0)
    for requests, title, said in (
        (long, "That does not work", "The prompt has"),
        (wrong, "That does not work", "The model was not trained to draw 64x64 pictures"),
        (many, "That does not work", "4 at once are more than the 3"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - each is checked below
            asyncio.run(drawn(desk, requests))
        assert explain(caught.value)[0] == title
        assert explain(caught.value)[1].startswith(said)
    assert explain(QueueFullError(7)) == ("Many people are drawing", "The server is busy; try again in 7 seconds.")
    assert explain(FailedError("too bad")) == ("The model could not finish", "Too bad.")
    assert "secret" not in " ".join(explain(KeyError("secret")))
    assert "secret" in caplog.text


def test_a_full_queue_is_told_to_whoever_comes_next(desk: Desk) -> None:
    async def crowd() -> None:
        requests = wish_drawings(desk, "red", count=3, size="8 x 8", seed=0, steps=50)
        async with await desk.batcher.submit(*requests):
            with pytest.raises(QueueFullError):
                await drawn(desk, requests[:1])

    asyncio.run(crowd())


def test_pictures_come_back_with_their_very_pixels() -> None:
    small = picture(1, (4, 8))
    assert enlarged(small).size == (512, 256)
    assert shrunk(enlarged(small), tiny.SIZES).tobytes() == small.tobytes()
    photograph = PILImage.effect_noise((64, 64), 50).convert("RGB")
    assert shrunk(photograph, tiny.SIZES) is photograph
    assert enlarged(photograph, side=100) is photograph


def test_a_mask_is_what_any_layer_paints() -> None:
    size = (6, 4)
    assert painted([]) is None
    assert painted([PILImage.new("RGBA", size, (9, 9, 9, 0))]) is None
    mask = painted([brushed((0, 0, 2, 2), size), brushed((1, 1, 3, 4), size)])
    assert mask is not None
    assert mask.getbbox() == (0, 0, 3, 4)
    assert sum(mask.histogram()[1:]) == 4 + 6 - 1


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    broken, bomb = tmp_path / "broken.png", tmp_path / "bomb.png"
    broken.write_bytes(b"not a picture")
    small = png_bytes(picture())
    header = b"IHDR" + struct.pack(">II", LARGEST, 2) + small[24:29]
    bomb.write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        open_picture(broken)
    with pytest.raises(ValueError, match="pixels, more than 32 million"):
        open_picture(bomb)


def test_words_under_pictures_are_not_html() -> None:
    html = tiles([None], ["<b>bold</b>"], share=[0.5])
    assert "<b>" not in html
    assert "width:50%" in html


def test_an_answer_is_read_back_as_it_was_told(desk: Desk, tmp_path: Path) -> None:
    answer, image = Answer(tmp_path), Image.from_pil(picture(2))
    for event in (
        Event(session=0, kind="text", text="red < "),
        Event(session=0, kind="text", text="blue"),
        Event(session=0, kind="progress", step=1, steps=2, image=image),
    ):
        answer.take(event)
    words, progress = answer.messages()
    assert words["content"] == "red &lt; blue"
    assert "step 1 of 2" in progress["content"]
    stopped = answer.messages()
    answer.take(Event(session=0, kind="image", image=image))
    answer.take(Event(session=0, kind="text", text="."))
    asked = {"role": "user", "content": [{"type": "text", "text": "what?"}]}

    def read(told: list[dict[str, Any]], text: str, *files: str, memory: Memory = "talk") -> Document:
        message = {"text": text, "files": list(files)}
        return read_talk([asked, *told], message, memory=memory, reader=lambda shown: read_picture(desk, shown))

    document = read(answer.messages(), "and now?")
    assert [segment.role for segment in document.segments] == ["user", *["assistant"] * 3, "user"]
    assert [s.text for s in document.segments if isinstance(s, Text)] == ["what?", "red < blue", ".", "and now?"]
    assert torch.equal(document.images[0].pixels, image.pixels)
    assert document.images[0].target
    assert not read(stopped, "and now?").images
    last = read(answer.messages(), "make it red", memory="picture").segments
    assert [(type(segment), segment.role) for segment in last] == [(Image, "user"), (Text, "user")]
    shown = tmp_path / "shown.png"
    picture(3, (12, 8)).save(shown)
    (only,) = read(answer.messages(), "", str(shown), memory="picture").segments
    assert isinstance(only, Image)
    assert only.pixels.shape == (3, 12, 8)
    assert read(answer.messages(), "now", memory="nothing") == Document((Text("now", "user"),))
    with pytest.raises(ValueError, match="message is empty"):
        read([], " ")


def test_examples_are_of_every_kind() -> None:
    shown = Image.from_pil(picture())
    every = [
        draw_document("a", shown),
        draw_document("a", shown),
        describe_document(shown, "b"),
        answer_document(shown, "c?", "d"),
        edit_document(shown, "e", shown),
        Document((Text("a story"),)),
    ]
    found = find_examples(every)
    assert (found.prompts, len(found.described)) == (("a",), 1)
    assert ([text for _, text in found.asked], [text for _, text in found.edits]) == (["c?"], ["e"])
    assert not found.talks
    long = Document(tuple(replace(segment) for document in every[:2] for segment in document.segments))
    assert find_examples([long]).talks


def test_a_prompt_is_taken_apart(desk: Desk) -> None:
    inside = Inside(desk)
    first, second = write_documents("red circle", "now <eos> blue", True, (8, 8))
    parts = [inside.take_apart(document) for document in (first, second)]
    assert [[part.kind for part in some if part.tokens > 1] for some in parts] == [
        ["noised", "clean", "noised"],
        ["clean"],
    ]
    html = chips(parts)
    assert html.count("4 patches") == 4
    assert f"{sum(part.tokens for some in parts for part in some)} tokens" in html
    assert "&lt;eoi&gt;" in html
