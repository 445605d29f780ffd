"""Editing without training: the strength, the mask, and what is refused; the samplers do not know of either."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from monoformer.autoencoder import Pixels
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.objectives import Estimate, build_objective
from monoformer.diffusion.samplers import build_sampler
from monoformer.diffusion.schedules import CLEAN
from monoformer.document import Document, Image, Text
from monoformer.generate.editing import Edit, Start
from monoformer.generate.session import Request
from monoformer.pipeline import Pipeline
from monoformer.randomness import generator
from tests import tiny
from tests.laws.test_generate import DRAW, engine, events_of, picture, request

PIXELS = picture(7, (8, 8)).pixels
LEFT = torch.zeros((8, 8), dtype=torch.bool).index_fill_(1, torch.arange(3), value=True)
FIELDS = ("euler", "heun", "ddim", "dpm++2m")


@pytest.mark.parametrize(
    ("diffusion", "sampler", "eta"),
    [*((FlowConfig(), name, 0.0) for name in FIELDS), (DDPMConfig(), "ddim", 0.0), (DDPMConfig(), "dpm++2m", 0.0)],
)
def test_the_kept_part_is_the_noised_picture_at_every_step(
    diffusion: DiffusionConfig, sampler: Any, eta: float
) -> None:
    path = build_objective(diffusion).path
    latent, noise = (torch.randn(3, 8, 8, generator=generator(0, key)) for key in "xn")
    start = Start.of(Edit(pixels=PIXELS, mask=LEFT), latent)
    levels = start.levels(path.levels(6), path)
    run = build_sampler(sampler, start.noised(noise, levels[0]), levels, eta=eta)
    x, t = next(run)
    by_time = {level.t: level for level in levels[:-1]}
    try:
        while True:
            level = by_time[t]
            expected = level.alpha * latent + level.sigma * noise
            torch.testing.assert_close(x[:, ~LEFT], expected[:, ~LEFT], rtol=1e-4, atol=1e-4)
            x, t = run.send(start.keep(Estimate(torch.zeros_like(x))))
    except StopIteration as stop:
        torch.testing.assert_close(stop.value[:, ~LEFT], latent[:, ~LEFT])


def test_the_strength_is_where_the_sampling_begins() -> None:
    latent = Pixels().encode(PIXELS[None])[0]
    path = build_objective(FlowConfig(prediction="velocity")).path
    for strength, steps in ((1.0, 10), (0.5, 5), (0.34, 4), (0.55, 6), (0.01, 1), (1e-6, 1)):
        for count in (10, 1):
            mask = LEFT if strength == 1 else None
            kept = Start.of(Edit(pixels=PIXELS, strength=strength, mask=mask), latent).levels(path.levels(count), path)
            assert len(kept) == 1 + (steps if count == 10 else 1)
            assert kept[0] == pytest.approx((strength, 1 - strength, strength))
            assert kept[-1] == CLEAN


@pytest.mark.parametrize("config", [DDPMConfig(), FlowConfig(prediction="x_0")])
def test_the_sampling_begins_at_a_level_that_the_network_knows(config: DiffusionConfig) -> None:
    latent, path = Pixels().encode(PIXELS[None])[0], build_objective(config).path
    for strength in (0.7, 0.3333, 1e-6):
        kept = Start.of(Edit(pixels=PIXELS, strength=strength), latent).levels(path.levels(20), path)
        times = [level.t for level in kept[:-1]]
        assert times == sorted(set(times), reverse=True)
        assert times[0] == pytest.approx(strength, abs=0.5 / 999) or times == [path.nearest(0).t]
        assert kept[-1] == CLEAN


def test_the_least_time_of_an_edit_is_shifted_as_training_times_are() -> None:
    latent, path = Pixels().encode(PIXELS[None])[0], build_objective(FlowConfig(shift_base=4)).path
    grid = path.levels(1000, positions=latent[0].numel())
    kept = Start.of(Edit(pixels=PIXELS, strength=1e-6), latent).levels(grid, path)
    assert kept == [pytest.approx(grid[-2]), CLEAN]


@pytest.mark.parametrize(("strength", "mask"), [(0.25, None), (1.0, LEFT), (0.5, LEFT)])
def test_an_edit_keeps_what_it_should(strength: float, mask: Any) -> None:
    made = tiny.pretrained()
    edit = Edit(pixels=PIXELS, strength=strength, mask=mask)
    one = replace(request(made, DRAW, "image"), edit=edit, previews=1)
    events = events_of(engine(made), one)
    (drawn,) = [event.image for event in events if event.image is not None]
    assert sum(event.kind == "progress" for event in events) == 4 * strength
    if mask is not None:
        assert torch.equal(drawn.pixels[:, ~mask], PIXELS[:, ~mask])
        assert not torch.equal(drawn.pixels[:, mask], PIXELS[:, mask])
        previews = [event.preview for event in events if event.preview is not None]
        assert torch.equal(previews[0].image().pixels[:, ~mask], PIXELS[:, ~mask])
    else:
        assert not torch.equal(drawn.pixels, PIXELS)


def test_edits_that_cannot_be_are_refused() -> None:
    made = tiny.pretrained()
    for wrong, message in (
        ({}, "strength 1 without a mask"),
        ({"strength": 0.0}, "above 0"),
        ({"mask": LEFT[:4]}, "picture's shape"),
        ({"mask": LEFT & False}, "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            Edit(pixels=PIXELS, **wrong)  # type: ignore[arg-type]
    edit = Edit(pixels=PIXELS, strength=0.5)
    for fields in ({"want": "any"}, {"want": "image", "size": (12, 8)}):
        with pytest.raises(ValueError, match=r"want image|leave size out"):
            Request(document=DRAW, settings=made.generate, edit=edit, **fields)  # type: ignore[arg-type]
    large = replace(edit, pixels=picture(0, (16, 16)).pixels)
    with pytest.raises(ValueError, match="not trained to draw 16x16"):
        engine(made).add(Request(document=Document((Text("x"),)), want="image", settings=made.generate, edit=large))


def test_no_mark_of_a_mask_is_lost() -> None:
    pipeline, picture = Pipeline(tiny.pretrained()), PILImage.new("RGB", (1000, 1000))
    side = pipeline.context_image(picture).pixels.shape[1]
    thin = PILImage.new("L", picture.size, 0)
    thin.paste(255, (500, 250, 507, 750))
    thin.putpixel((999, 999), 255)
    expected = torch.zeros(side, side, dtype=torch.bool)
    expected[side // 4 : side * 3 // 4, side // 2] = expected[-1, -1] = True
    hole = thin.point(lambda value: 255 - value)
    clear, opaque = (PILImage.merge("RGBA", (thin, thin, thin, alpha)) for alpha in (hole, thin.point(lambda _: 255)))
    for mask in (thin, clear, opaque, clear.convert("LA"), thin.convert("1"), thin.convert("P")):
        assert torch.equal(pipeline.context_mask(mask, picture, or_white=True), expected), mask.mode
    assert torch.equal(pipeline.context_mask(clear, picture, or_white=False), expected)
    assert not pipeline.context_mask(opaque, picture, or_white=False).any(), "the picture itself, with no hole in it"
    black = PILImage.new("RGBA", (8, 8), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 4, 8))
    (edited,) = pipeline.edit(Image(pixels=PIXELS).to_pil(), "blue", mask=black)
    found = Image.from_pil(edited).pixels
    assert torch.equal(found[:, :, 4:], PIXELS[:, :, 4:])
    assert not torch.equal(found, PIXELS)


def test_the_pipeline_edits_with_strength_and_mask() -> None:
    pipeline = Pipeline(tiny.pretrained())
    before, mask = Image(pixels=PIXELS).to_pil(), PILImage.fromarray((LEFT * 255).to(torch.uint8).numpy())
    for edited in (
        *pipeline.edit(before, "make it blue", mask=mask),
        *pipeline.edit([before, before], ["blue", "red"], strength=0.5, mask=mask, seed=3),
        *pipeline.generate_images(["blue", "red"], picture=before, mask=mask),
    ):
        found = Image.from_pil(edited).pixels
        assert torch.equal(found[:, ~LEFT], PIXELS[:, ~LEFT])
        assert not torch.equal(found, PIXELS)
    with pytest.raises(ValueError, match="give picture"):
        pipeline.generate_images("blue", mask=mask)
    with pytest.raises(ValueError, match="image_guidance has no effect"):
        pipeline.generate_images("blue", image_guidance=2.0)
    assert pipeline.generate_text("the", choices=["red", "blue"], logit_bias={})[0] in ("red", "blue")
