"""Guidance: two scales, an interval, rescaling and a negative text; each against full passes without a cache."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.generate import GenerateConfig
from monoformer.diffusion.objectives import Estimate, build_objective
from monoformer.diffusion.samplers import build_sampler, drive
from monoformer.document import Document, Image, Text
from monoformer.generate.guidance import guide, null_document, null_documents
from monoformer.generate.session import Event
from monoformer.randomness import generator
from tests import tiny
from tests.laws.test_generate import DRAW, EDIT, WRITE, T, assert_same_picture, engine, events_of, predicted, request

BARE = Document(())


def estimates() -> list[Estimate]:
    return [Estimate(torch.randn(3, 8, 8, generator=generator(0, key)), torch.ones(())) for key in "abc"]


def test_two_scales_are_those_of_the_paper() -> None:
    both, images, none = estimates()
    mixed = guide(both, images, 3.0, without_images=none, image_scale=1.5).x_0
    expected = none.x_0 + 1.5 * (images.x_0 - none.x_0) + 3.0 * (both.x_0 - images.x_0)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(
        guide(both, images, 2.0, without_images=none, image_scale=2.0).x_0, guide(both, none, 2.0).x_0
    )


def test_rescaling_draws_the_deviation_back() -> None:
    there, plain, _ = estimates()
    full, half, off = (guide(there, plain, 4.0, rescale=share).x_0 for share in (1.0, 0.5, 0.0))
    assert float(full.std()) == pytest.approx(float(there.x_0.std()), rel=1e-5)
    torch.testing.assert_close(half, (full + off) / 2)


def test_contexts_are_those_with_a_weight() -> None:
    def kept(document: Document, text: float, image: float) -> list[Document]:
        return null_documents(document, GenerateConfig(guidance=text, image_guidance=image))

    images = null_document(EDIT)
    assert len(images.images) == 2
    assert kept(EDIT, 2.0, 1.0) == [images]
    assert kept(EDIT, 2.0, 2.0) == [BARE]
    assert kept(EDIT, 2.0, 1.5) == kept(EDIT, 1.0, 1.5) == [images, BARE]
    assert kept(EDIT, 1.0, 1.0) == kept(DRAW, 1.0, 1.5) == []
    assert kept(DRAW, 2.0, 1.5) == [BARE]


def test_a_negative_text_stands_where_the_text_was() -> None:
    assert null_document(DRAW, negative="blue") == Document((Text("blue", "user"),))
    first, second = EDIT.images
    assert null_document(EDIT, negative="not") == Document((first, second, Text("not", "user")))
    assert null_document(EDIT, keep_images=False, negative="not") == Document((Text("not", "user"),))
    assert null_document(Document((first,)), negative="not") == Document((first, Text("not", "user")))


@pytest.mark.parametrize(
    ("document", "changes", "slots", "rows"),
    [
        (EDIT, {"guidance": 2.0, "image_guidance": 1.5}, 3, 12),
        (DRAW, {"guidance": 2.0, "negative": "blue"}, 2, 8),
        (DRAW, {"guidance": 3.0, "guidance_interval": (0.4, 0.8)}, 2, 6),
        (DRAW, {"guidance": 3.0, "guidance_rescale": 0.7}, 2, 8),
    ],
    ids=["two scales", "negative", "interval", "rescale"],
)
def test_the_engine_mixes_what_full_passes_say(
    document: Document, changes: dict[str, Any], slots: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.pretrained()
    one = request(made, document, "image", size=(8, 8), seed=5, **changes)
    settings, own = one.settings, made.sequencer()
    contexts = [document, *null_documents(document, settings)]
    objective, asked = build_objective(made.diffusion), 0

    def denoise_fully(x: Tensor, t: float) -> Estimate:
        nonlocal asked
        low, high = settings.guidance_interval
        found = []
        for context in contexts if low <= t <= high else contexts[:1]:
            asked += 1
            layout = own.prompt(context, opening="image")
            own._add_block(layout, Image(pixels=torch.zeros((3, 8, 8), dtype=torch.uint8)), 99, noised=True)
            found.append(objective.estimate(predicted(made, layout, target=x, t=t), x[None], torch.tensor([t])))
        found = [Estimate(estimate.x_0[0]) for estimate in found]
        if len(found) == 1:
            return found[0]
        return guide(
            *found[:2], settings.guidance, without_images=found[2] if len(found) > 2 else None,
            image_scale=settings.image_guidance, rescale=settings.guidance_rescale,
        )  # fmt: skip

    noise = torch.randn((3, 8, 8), generator=generator(5, 0, "picture"))
    latent = drive(build_sampler("euler", noise, objective.path.levels(4)), denoise_fully)
    assert asked == rows
    server, counted = engine(made), 0
    server.add(one)
    server.step()
    assert len(server.free) == 4 - slots
    inner = server.artist._denoise

    def count(some: Any, *, grid: tuple[int, int]) -> list[Estimate]:
        nonlocal counted
        counted += len(some)
        return inner(some, grid=grid)

    monkeypatch.setattr(server.artist, "_denoise", count)
    drawn = next(event.image for event in events_of(server) if event.image)
    assert counted == rows, "no context is asked where it has no weight"
    assert_same_picture(drawn, Image(pixels=server.network.autoencoder.decode(latent[None])[0]))


def test_settings_without_guidance_are_refused() -> None:
    for wrong in ({"guidance_rescale": 0.5}, {"negative": "x"}, {"guidance_interval": (0.0, 0.5)}):
        with pytest.raises(ValueError, match="no effect without guidance"):
            GenerateConfig(guidance=1.0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must rise"):
        GenerateConfig(guidance_interval=(0.6, 0.5))
    made = tiny.pretrained()
    with pytest.raises(ValueError, match="needs 3 contexts at once, but the engine has 2 slots"):
        engine(made, slots=2).add(request(made, EDIT, "image", guidance=2.0, image_guidance=1.5))


def test_a_negative_text_in_a_talk_is_one_turn_of_the_user() -> None:
    """Chat templates of many models refuse turns that do not alternate."""
    drawn, shown = EDIT.images
    talk = Document((Text("a circle", "user"), replace(drawn, role="assistant"), shown, Text("bluer", "user")))
    null = null_document(talk, negative="red")
    assert [segment.role for segment in null.segments] == ["user"] * 3
    assert null.images == (replace(drawn, role="user"), shown)
    assert null.segments[-1] == Text("red", "user")


def test_a_negative_text_without_room_for_the_picture_ends_its_request_alone() -> None:
    made = tiny.pretrained()
    context, negative = made.model.config.context, "red "
    while len(T.encode(negative + "red ")) < context - 12:
        negative += "red "
    server = engine(made, slots=8)
    for want in ("image", "any"):
        with pytest.raises(ValueError, match="shorten the negative text"):
            server.add(request(made, DRAW, want, guidance=2.0, negative=f"{negative} red red red red red red red"))
    draws = server.add(
        request(made, DRAW, "any", guidance=2.0, negative=negative, size=(4, 8), steps=2, logit_bias=((T.boi, 1000.0),))
    )
    text = server.add(request(made, WRITE, "text", max_tokens=30, logit_bias=((T.eos, -1000.0),)))
    ends: dict[int, Event] = {}
    while server.active or server.waiting:
        ends |= {event.session: event for event in server.step() if event.kind == "end"}
    assert ends[draws].reason == "error"
    assert "shorten the negative text" in ends[draws].error
    assert ends[text].reason in ("length", "stop")
    assert len(server.free) == 8
