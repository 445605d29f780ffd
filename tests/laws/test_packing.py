"""Packing changes nothing that a document says or hears: packed = separate, images whole, rows deterministic."""

import re

import pytest
import torch

from monoformer.autoencoder import Pixels
from monoformer.batch import IGNORED, Batch, Layout
from monoformer.config.diffusion import FlowConfig
from monoformer.data.build import build_source
from monoformer.data.source import usable
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Image, Text
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import MonoFormer
from monoformer.packing import collate, pack
from monoformer.presets import PRESETS
from monoformer.pretrained import build_sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.build import plan_all
from monoformer.train.loss import noise_of, pass_losses, times_of
from tests import tiny


def losses(network: MonoFormer, batch: Batch) -> torch.Tensor:
    objective = build_objective(FlowConfig())
    with torch.no_grad():
        return torch.stack(
            pass_losses(
                network,
                batch,
                dense_mask(batch),
                objective=objective,
                autoencoder=Pixels(),
                vision=tiny.vision_of(network.config),
                seed=3,
            )
        )


@pytest.mark.parametrize("context", tiny.CONTEXTS)
@pytest.mark.parametrize("mode", tiny.MODES)
def test_packed_is_separate(mode: str, context: str) -> None:
    network = tiny.model(mode)
    items = tiny.layouts(mode, 1, 8, sequence={"context": context})
    batch = tiny.in_rows(items, rows=2)
    assert len(batch.images) > 1, "several image sizes in one batch"
    assert batch.targets > 1
    states = tiny.hidden_of(network, batch)
    total = torch.zeros(2)
    places = [0, 0]
    for number, layout in enumerate(items):
        row = number % 2
        alone = tiny.in_rows([layout], rows=1, padding=0)
        span = slice(places[row], places[row] + len(layout))
        torch.testing.assert_close(states[row, span], tiny.hidden_of(network, alone)[0], rtol=1e-5, atol=1e-5)
        total += losses(network, alone)
        places[row] += len(layout)
    torch.testing.assert_close(losses(network, batch), total, rtol=1e-5, atol=0)


def text_layout(number: int, length: int) -> Layout:
    layout = Layout(document=number)
    for token in range(length):
        layout.add_token(20 + token % 200, labelled=True)
    return layout


def test_best_fit_fills_rows_and_does_not_depend_on_the_order_given() -> None:
    items = [text_layout(number, length) for number, length in enumerate([6, 5, 4, 3, 2, 2, 2, 6])]
    rows = pack(items, length=10, seed=1)
    assert collate(rows, length=10, pad=0).documents == len(items)
    assert sorted(tuple(len(layout) for layout in row) for row in rows) == [(2,), (5, 2, 2), (6, 3), (6, 4)]
    names = [[layout.document for layout in row] for row in rows]
    again = pack(list(reversed(items)), length=10, seed=1)
    assert [[layout.document for layout in row] for row in again] == names
    orders = [[[layout.document for layout in row] for row in pack(items, length=10, seed=seed)] for seed in range(8)]
    assert any(order != names for order in orders), "the seed orders the rows"
    assert all(sorted(order) == sorted(names) for order in orders)


def test_the_smallest_preset_leaves_at_most_a_twentieth_of_its_rows_empty() -> None:
    config = PRESETS["scenes-quick"]()
    documents = list(usable(build_source(config.data, seed=config.seed), config.sequence.window))
    texts = [part.text for document in documents for part in document.segments if isinstance(part, Text)]
    learned = Tokenizer.train(texts, vocabulary=config.tokenizer.vocabulary)
    own = build_sequencer(config.model, learned, config.sequence)
    plans, bad = plan_all(own, list(enumerate(documents)), length=config.sequence.row, seed=config.seed)
    rows = pack(plans, length=config.sequence.row)
    assert not bad
    assert 1 - sum(map(len, plans)) / (len(rows) * config.sequence.row) <= 0.05


@pytest.mark.parametrize("seed", range(3))
def test_every_document_is_in_one_row_whole(seed: int) -> None:
    items = tiny.layouts("token", seed, 40)
    length = max(map(len, items)) + 5
    rows = pack(items, length=length)
    assert sorted(layout.document for row in rows for layout in row) == [layout.document for layout in items]
    assert all(sum(map(len, row)) <= length for row in rows)
    batch = collate(rows, length=length, pad=tiny.tokenizer().pad)
    for row, layouts in enumerate(rows):
        ids = [token for layout in layouts for token in layout.ids]
        assert batch.ids[row, : len(ids)].tolist() == ids
        assert batch.positions[row, : len(ids)].tolist() == [p for layout in layouts for p in layout.positions]
        assert batch.labels[row, : len(ids)].tolist() == [label for layout in layouts for label in layout.labels]
        assert (batch.labels[row, len(ids) :] == IGNORED).all()
        assert (batch.document[row, len(ids) :] == -1).all()


def test_image_slots_point_at_the_patches_and_name_their_document() -> None:
    items = tiny.layouts("token", 5, 24)
    batch = tiny.in_rows(items, rows=3)
    seen = torch.zeros_like(batch.ids)
    pictures = {(layout.document, block.number): block.pixels for layout in items for block in layout.blocks}
    for slots in batch.images:
        assert slots.pixels.shape[-2:] == (4 * slots.grid[0], 4 * slots.grid[1])
        for n in range(len(slots.row)):
            start = int(slots.start[n])
            seen[slots.row[n], start : start + slots.tokens] += 1
            m = slots.picture[n]
            assert torch.equal(slots.pixels[m], pictures[int(slots.document[m]), int(slots.number[m])])
    assert torch.equal(seen == 1, batch.ids == tiny.tokenizer().patch)
    assert batch.targets == sum(block.noised for layout in items for block in layout.blocks)
    assert sum(len(slots.pixels) for slots in batch.images) == len(pictures), "a copy shares its picture"


def test_documents_longer_than_a_row_and_without_a_layout_are_named() -> None:
    own = tiny.sequencer()
    good, long = Document((Text("red"),)), Document((Text("red circle " * 40),))
    odd = Document((Image(pixels=torch.zeros(3, 5, 8, dtype=torch.uint8)),))
    plans, bad = plan_all(own, [(4, good), (5, long), (6, odd), (8, good)], length=30, seed=0)
    assert [plan.document for plan in plans] == [4, 8]
    assert {number: one.cause for number, one in bad.items()} == {5: "longer than a row", 6: "cannot be laid out"}
    assert re.fullmatch(r"\d+ tokens, more than a row of 30; raise --sequence.row.*", str(bad[5]))
    assert "does not divide into patches" in str(bad[6])
    assert pack([], length=10) == []


@pytest.mark.parametrize("mode", tiny.MODES)
def test_noise_draws_side_by_side_are_documents_apart(mode: str) -> None:
    network = tiny.model(mode)
    drawn = 0
    for one, many in zip(
        tiny.layouts(mode, 4, 12), tiny.layouts(mode, 4, 12, sequence={"noise_draws": 3}), strict=True
    ):
        batches = [tiny.in_rows([layout], rows=1, padding=0) for layout in (one, many)]
        assert batches[1].targets == 3 * batches[0].targets
        alone, beside = (tiny.hidden_of(network, batch)[0] for batch in batches)  # all draws take the same noise here
        blocks = {(block.number, block.noised): block for block in one.blocks}
        for block in many.blocks:
            tokens = block.grid[0] * block.grid[1]
            single = blocks[block.number, block.noised]
            torch.testing.assert_close(
                beside[block.start : block.start + tokens],
                alone[single.start : single.start + tokens],
                rtol=1e-5,
                atol=1e-5,
            )
            drawn += block.draw > 0
    assert drawn > 10


def test_noise_draws_have_noise_of_their_own_and_times_spread_evenly() -> None:
    objective = build_objective(FlowConfig())
    for seed in range(3):
        batch = tiny.in_rows(tiny.layouts("add", seed, 6, sequence={"noise_draws": 4}))
        for slots in batch.images:
            targets = slots.noised.nonzero()[:, 0]
            like = torch.zeros(len(targets), 3, 2, 2)
            times, noise = (
                times_of(slots, targets, objective, seed, positions=4),
                noise_of(slots, targets, like, seed),
            )
            for picture in slots.picture[targets].unique():
                mine = slots.picture[targets] == picture
                assert sorted(slots.draw[targets][mine].tolist()) == [0, 1, 2, 3]
                share = torch.distributions.Normal(0.4, 1.0).cdf(torch.logit(times[mine])).sort().values
                torch.testing.assert_close(share.diff(), torch.full((3,), 0.25), rtol=0, atol=1e-3)
                assert len({tuple(one.flatten().tolist()) for one in noise[mine]}) == 4
