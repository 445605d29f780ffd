"""The network: every mode runs, text does not notice time, noised images are private, every weight learns."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.batch import IGNORED, Batch
from monoformer.config.diffusion import FlowConfig
from monoformer.config.model import ModelConfig
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Image, Text
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import OFFICIAL_DEVIATIONS, MonoFormer
from monoformer.model.patches import patchify, positions_2d, unpatchify
from monoformer.model.unet import Skips
from monoformer.randomness import generator
from monoformer.train.loss import pass_losses
from tests import tiny


@pytest.mark.parametrize(("patch", "size"), [(1, (3, 2)), (2, (4, 6)), (4, (8, 12))])
def test_patchify_inverts(patch: int, size: tuple[int, int]) -> None:
    x = torch.arange(2.0 * 3 * size[0] * size[1]).view(2, 3, *size)
    patches = patchify(x, patch)
    grid = size[0] // patch, size[1] // patch
    assert patches.shape == (2, grid[0] * grid[1], patch * patch * 3)
    assert torch.equal(unpatchify(patches, grid, patch), x)
    second = x[:, :, :patch, patch : 2 * patch]  # patches go row by row
    assert torch.equal(patches[:, 1], second.permute(0, 2, 3, 1).reshape(2, -1))


def test_positions_are_distinct_and_tell_x_first() -> None:
    positions = positions_2d((3, 5), 32, torch.device("cpu")).view(3, 5, 32)
    assert torch.equal(positions[0, :, :16], positions[2, :, :16])
    assert torch.equal(positions[:, 0, 16:], positions[:, 4, 16:])
    assert len(positions.view(15, 32).unique(dim=0)) == 15


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 1}, {"qk_norm": False}, {"patch": 2}, {"channels": 3, "layers": 1}]
)
@pytest.mark.parametrize("mode", tiny.MODES)
def test_every_mode_runs_and_predicts_images_of_the_right_shape(mode: str, changes: dict[str, Any]) -> None:
    network = tiny.model(mode, **changes)
    network.initialize(generator(0))
    own = replace(tiny.sequencer(mode), cell=network.config.patch)
    batch = tiny.in_rows([own.document(d, n) for n, d in enumerate(tiny.documents(3, 6))])
    images, times, places = tiny.latents_of(batch)

    def predictions() -> list[Tensor]:
        skips: list[Skips] = []
        states = network(
            batch.ids,
            batch.positions,
            dense_mask(batch),
            images=images,
            times=times,
            places=places,
            skips=skips,
            **tiny.features_of(batch),
        )
        assert states.shape == (*batch.ids.shape, 32)
        assert network.text(states).shape[-1] == network.config.vocabulary
        return [network.image(states, *parts) for parts in zip(times, places, skips, strict=True)]

    assert not any(bool(prediction.any()) for prediction in predictions()), "the image head starts at zero"
    tiny.randomize(network)
    for latents, prediction in zip(images, predictions(), strict=True):
        assert prediction.shape == latents.shape
        assert prediction.isfinite().all()
        assert prediction.std() > 0.1


def test_official_starting_values_keep_the_time_token_a_constant() -> None:
    """The released code's: patches start at zero and learn; its time token, two layers at zero, learns a bias alone."""
    changes: dict[str, Any] = {"time": "projected_token", "image_head": "dit"}
    network, own = (MonoFormer(tiny.model_config("token", **changes)) for _ in range(2))
    network.initialize(generator(0), official=True)
    own.initialize(generator(0))
    ours = dict(own.named_parameters())
    for name, parameter in network.named_parameters():
        if name in OFFICIAL_DEVIATIONS and not name.startswith("patches.modulation"):
            deviation = OFFICIAL_DEVIATIONS[name]
            assert abs(float(parameter.detach().std()) - deviation) <= 0.1 * deviation
            assert not torch.equal(parameter, ours[name])
        else:  # what a language model has too, and biases
            assert parameter.shape == ours[name].shape
    batch = tiny.in_rows([tiny.sequencer("token").document(d, n) for n, d in enumerate(tiny.documents(3, 6))])
    images, times, places = tiny.latents_of(batch)
    states = network(batch.ids, batch.positions, dense_mask(batch), images=images, times=times, places=places)
    losses = [
        (network.image(states, time, place, ()) - latents).square().mean()
        for latents, time, place in zip(images, times, places, strict=True)
    ]
    torch.stack(losses).sum().backward()
    moved = {
        name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert {"patches.linear.weight", "image_head.linear.weight", "time.input.weight", "time_token.output.bias"} <= moved
    assert not {"time_token.input.weight", "time_token.output.weight"} & moved


def test_an_unknown_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="set from the tokenizer"):
        MonoFormer(ModelConfig())


def text_and_image_rows(mode: str) -> Batch:
    """Row 0 holds text alone, row 1 images."""
    own = tiny.sequencer(mode)
    text = own.document(Document((Text("red blue circle of the large"),)), 0)
    image = own.document(Document((Text("red"), tiny.image(Random(2), target=True), Text("of"))), 1)
    return tiny.in_rows([text, image])


@pytest.mark.parametrize("mode", tiny.MODES)
def test_text_rows_are_equal_bit_for_bit_whatever_the_images_of_other_rows(mode: str) -> None:
    network, batch = tiny.model(mode), text_and_image_rows(mode)
    images, times, places = tiny.latents_of(batch)
    mask = dense_mask(batch)

    def states(images: list[Tensor], times: list[Tensor]) -> Tensor:
        found: Tensor = network(batch.ids, batch.positions, mask, images=images, times=times, places=places)
        return found.detach()

    with_images = states(images, times)
    changed = states([x * 3 + 1 for x in images], [time + 400 for time in times])
    without = network(batch.ids, batch.positions, mask).detach()
    assert torch.equal(with_images[0], changed[0])
    if network.config.experts == "shared":
        assert torch.equal(with_images[0], without[0])
    else:  # text is gathered where there are images, so its matrices have another shape
        torch.testing.assert_close(with_images[0], without[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(with_images[1], changed[1])


@pytest.mark.parametrize("mode", tiny.MODES)
def test_text_alone_does_not_read_the_image_weights(mode: str) -> None:
    network = tiny.model(mode)
    batch = tiny.in_rows(tiny.layouts(mode, 0, 4, images=False))
    before = tiny.hidden_of(network, batch)
    with torch.no_grad():
        for parameter in network.image_parameters():
            parameter.mul_(5).add_(1)
    assert torch.equal(tiny.hidden_of(network, batch), before)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_the_time_reaches_its_own_image_and_only_that(mode: str) -> None:
    network = tiny.model(mode)
    first, second = tiny.image(Random(0), target=True, size=(8, 8)), tiny.image(Random(1), target=True, size=(8, 8))
    own = tiny.sequencer(mode, context="clean_copy")
    batch = tiny.in_rows([own.document(Document((Text("red"), first, Text("of"), second)))], rows=1)
    images, times, places = tiny.latents_of(batch)
    ((_, clean, last),) = [slots.start.tolist() for slots in batch.images]
    mask = dense_mask(batch)
    time = times[0].clone().requires_grad_()
    states = network(batch.ids, batch.positions, mask, images=images, times=[time], places=places)
    (to_last,) = torch.autograd.grad(states[0, last : last + 4].square().sum(), time, retain_graph=True)
    assert to_last[2] != 0, "its own time"
    assert to_last[0] == 0, "the noised block of an earlier image is private"
    assert to_last[1] != 0, "the copy's time, always 0, is read"
    (to_text,) = torch.autograd.grad(states[0, : int(batch.images[0].start[0]) - 1].sum(), time, retain_graph=True)
    assert not to_text.any()
    (to_copy,) = torch.autograd.grad(states[0, clean : clean + 4].square().sum(), time)
    assert to_copy[0] == 0


@pytest.mark.parametrize("mode", tiny.MODES)
def test_a_noised_image_with_a_clean_copy_influences_nothing_after_it(mode: str) -> None:
    network = tiny.model(mode)
    own = tiny.sequencer(mode)
    segments = (Text("red"), tiny.image(Random(0), target=True, size=(8, 8)), Text("of the"), tiny.image(Random(1)))
    batch = tiny.in_rows([own.document(Document(segments))], rows=1)
    slots = next(slots for slots in batch.images if slots.noised.any())
    which = batch.images.index(slots)
    noised, count = int(slots.start[0]), slots.tokens
    assert slots.noised.tolist()[:2] == [True, False]
    images, times, places = tiny.latents_of(batch)
    mask = dense_mask(batch)

    def states(change: float) -> Tensor:
        moved = [x.clone() for x in images]
        moved[which][0] += change
        later = [time.clone() for time in times]
        later[which][0] += 100 * change
        given = {"images": moved, "times": later, "places": places, **tiny.features_of(batch)}
        found: Tensor = network(batch.ids, batch.positions, mask, **given)
        return found.detach()

    before, after = states(0.0), states(1.0)
    touched = (before != after).any(dim=-1)[0]
    assert touched[noised : noised + count].all()
    touched[noised - network.config.has_time_token : noised + count] = False
    assert not touched.any()


@pytest.mark.parametrize("mode", ["adaln", "token"])
def test_an_image_is_read_in_both_directions_and_a_causal_one_is_not(mode: str) -> None:
    for attention in ("two-way", "causal"):
        network = tiny.model(mode, image_attention=attention)
        own = replace(tiny.sequencer(mode), two_way=attention == "two-way")
        batch = tiny.in_rows([own.document(Document((tiny.image(Random(0), size=(8, 8)),)))], rows=1)
        images, times, places = tiny.latents_of(batch)
        images[0].requires_grad_()
        states = network(batch.ids, batch.positions, dense_mask(batch), images=images, times=times, places=places)
        first = int(batch.images[0].start[0])
        (gradient,) = torch.autograd.grad(states[0, first].square().sum(), images[0])
        assert bool(gradient[..., 4:, 4:].any()) == (attention == "two-way")


@pytest.mark.parametrize("images", ["target", "context", "none", "no text labels"])
@pytest.mark.parametrize("mode", tiny.MODES)
def test_every_parameter_gets_a_gradient_in_every_pass(mode: str, images: str) -> None:
    network = tiny.model(mode)
    segments: list[Text | Image] = [Text("red of")]
    if images != "none":
        segments.append(tiny.image(Random(0), target=images != "context"))
    batch = tiny.in_rows([tiny.sequencer(mode).document(Document(tuple(segments)))], rows=1)
    if images == "no text labels":
        batch = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    text, image = pass_losses(
        network,
        batch,
        dense_mask(batch),
        objective=build_objective(FlowConfig()),
        autoencoder=Pixels(),
        vision=tiny.vision_of(network.config),
        seed=0,
    )
    (text + image).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    if images == "target":
        unmoved = [name for name, p in network.named_parameters() if not p.grad.any()]
        assert unmoved == [name for name in unmoved if name.startswith("vision.")], "they read context alone"
    else:
        head = [p.grad for name, p in network.named_parameters() if name.startswith("image_head.")]
        assert any(bool(gradient.any()) for gradient in head) == (images == "no text labels")
        if images == "context" and network.vision is not None:
            assert all(p.grad is not None and bool(p.grad.any()) for p in network.vision.parameters())
