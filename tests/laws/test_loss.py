"""The loss: global counts, k accumulated passes = one big batch, times and noise keyed by document and image."""

from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.batch import Batch, ImageSlots, Layout
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Text
from monoformer.model.attention import dense_mask
from monoformer.packing import collate, pack
from monoformer.train.loss import noise_of, pass_losses, times_of
from tests import tiny

DIFFUSIONS = [
    FlowConfig(prediction="x_0"),
    FlowConfig(prediction="velocity"),
    FlowConfig(shift_base=64),
    DDPMConfig(),
    DDPMConfig(prediction="v", variance="learned"),
]


def gradients(folder: Path, passes: list[Batch], mode: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What one step of the real trainer does to the weights, with SGD at rate 1 and no clipping."""
    config = tiny.run_config(folder, mode=mode, train={"clip": 0.0, "warmup": 0, "image_weight": 0.7})
    trainer = tiny.trainer(config)
    trainer.model.train()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    sgd = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    sgd.param_groups[0]["peak"] = 1.0
    trainer.state.optimizers[:] = [sgd]
    values = trainer.train_step(passes)
    return {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}, values


def ragged_passes() -> list[list[list[Layout]]]:
    """Passes of rows: the first without images, the others with different numbers of targets and labels."""
    text = tiny.layouts("adaln", 1, 3, images=False)
    mixed = tiny.layouts("adaln", 2, 9)
    for number, layout in enumerate(mixed):
        layout.document += 100 + number
    return [[text[:2], text[2:]], [mixed[:4], mixed[4:6]], [mixed[6:8], mixed[8:]]]


@pytest.mark.parametrize("mode", tiny.MODES)
def test_accumulated_passes_are_one_big_batch(mode: str, tmp_path: Path) -> None:
    passes = ragged_passes()
    if tiny.model_config(mode).has_time_token:
        passes = [[tiny.layouts(mode, 1, 3, images=False)], [tiny.layouts(mode, 2, 4)], [tiny.layouts(mode, 3, 4)]]
    length = max(sum(map(len, row)) for rows in passes for row in rows)
    pad = tiny.tokenizer().pad
    batches = [collate(rows, length=length, pad=pad) for rows in passes]
    whole = collate([row for rows in passes for row in rows], length=length, pad=pad)
    assert batches[0].targets == 0
    assert len({batch.labelled for batch in batches}) == 3
    many, values = gradients(tmp_path / "many", batches, mode)
    one, whole_values = gradients(tmp_path / "one", [whole], mode)
    scale = max(float(gradient.abs().max()) for gradient in one.values())
    for name in one:
        torch.testing.assert_close(
            many[name], one[name], rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert values == pytest.approx(whole_values, rel=1e-5)


def losses(batch: Batch, diffusion: DiffusionConfig, *, seed: int = 5) -> Tensor:
    return torch.stack(
        pass_losses(
            tiny.model(learned_variance=tiny.learns_variance(diffusion)),
            batch,
            dense_mask(batch),
            objective=build_objective(diffusion),
            autoencoder=Pixels(),
            seed=seed,
        )
    ).detach()


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=lambda d: f"{type(d).__name__}-{d.prediction}")
def test_the_loss_of_documents_does_not_depend_on_how_they_are_batched(diffusion: DiffusionConfig) -> None:
    items = tiny.layouts("adaln", 6, 8)
    batch = tiny.in_rows(items, rows=2)
    other = tiny.in_rows(list(reversed(items)), rows=3)
    alone = [tiny.in_rows([layout], rows=1) for layout in items]
    expected = losses(batch, diffusion)
    assert (expected > 0).all()
    torch.testing.assert_close(losses(other, diffusion), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sum(losses(one, diffusion) for one in alone), expected, rtol=1e-5, atol=0)
    assert losses(batch, diffusion, seed=6)[1] != expected[1], "the seed matters"
    assert losses(batch, diffusion, seed=6)[0] != expected[0], "text reads noised or copied images"


def drawn(batch: Batch, seed: int = 5) -> dict[tuple[int, int], tuple[float, Tensor]]:
    """Time and noise of every target by (document, image)."""
    objective, found = build_objective(FlowConfig()), {}
    for slots in batch.images:
        targets = slots.noised.nonzero()[:, 0]
        clean = Pixels().encode(slots.pixels)[slots.picture][targets]
        times, noise = (
            times_of(slots, targets, objective, seed, positions=clean[0, 0].numel()),
            noise_of(slots, targets, clean, seed),
        )
        for n, target in enumerate(targets):
            m = slots.picture[target]
            found[int(slots.document[m]), int(slots.number[m])] = (float(times[n]), noise[n])
    return found


def test_times_and_noise_are_keyed_by_document_and_image() -> None:
    items = tiny.layouts("adaln", 6, 30)
    first = drawn(tiny.in_rows(items, rows=2))
    length = max(map(len, items)) + 10
    second = drawn(collate(pack(items, length=length, seed=9), length=length, pad=0))
    assert first.keys() == second.keys()
    assert len(first) > 10
    for key, (time, noise) in first.items():
        assert second[key][0] == time
        assert torch.equal(second[key][1], noise)
    times = [time for time, _ in first.values()]
    assert len(set(times)) == len(times), "every target image has its own time"
    assert all(0 < time < 1 for time in times)
    assert drawn(tiny.in_rows(items), seed=6)[next(iter(first))][0] != first[next(iter(first))][0]
    values = torch.cat([noise.flatten() for _, noise in first.values()])
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05


def limited_times(diffusion: DiffusionConfig, limit: float, *, count: int = 20_000) -> Tensor:
    """Training times of that many targets with one noise limit."""
    shape, number = torch.zeros(count, dtype=torch.long), torch.arange(count)
    slots = ImageSlots(
        pixels=torch.zeros(count, 3, 1, 1, dtype=torch.uint8), document=number, number=shape, picture=number, row=shape,
        start=shape, draw=shape, noised=shape == 0, noise_limit=torch.full((count,), limit), grid=(1, 1),
    )  # fmt: skip
    return times_of(slots, number, build_objective(diffusion), 3, positions=1)


def test_the_noise_limit_of_one_half_is_index_500_of_1000() -> None:
    chain = DDPMConfig(betas="cosine")
    index = (build_objective(chain).path.network_time(limited_times(chain, 0.5))).long()
    counts = torch.bincount(index)
    assert len(counts) == 501, "index 500 occurs, 501 does not"
    assert counts.min() > 0, "and every index below it"
    assert counts[500] < 3 * counts.float().mean(), "nothing is heaped on the limit"
    assert float(index.float().mean()) == pytest.approx(250, abs=5)
    assert int(build_objective(chain).path.network_time(limited_times(chain, 1.0)).max()) == 999


@pytest.mark.parametrize("mean", [-1.0, 1.0])
def test_limited_times_of_the_flow_are_the_unlimited_ones_below_the_limit(mean: float) -> None:
    flow = FlowConfig(time_mean=mean)
    limited, free = limited_times(flow, 0.5), limited_times(flow, 1.0)
    assert float(limited.max()) <= 0.5 < float(free.max())
    assert int((limited == limited.max()).sum()) < 3, "nothing is heaped on the limit"
    below = free[free <= 0.5]
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(limited.quantile(levels), below.quantile(levels), rtol=0, atol=0.01)


def test_only_pictures_before_their_caption_have_limited_times() -> None:
    own = tiny.sequencer(context="noised", noise_limit=0.5)
    shown, drawn = tiny.image(Random(0), role="user"), tiny.image(Random(1), role="assistant", target=True)
    described = [own.document(Document((shown, Text("red", "assistant"))), n) for n in range(60)]
    asked = [own.document(Document((Text("red", "user"), drawn)), 100 + n) for n in range(60)]
    chain = build_objective(DDPMConfig())
    for items, latest in ((described, 500), (asked, 999)):
        (slots,) = tiny.in_rows(items).images
        targets = slots.noised.nonzero()[:, 0]
        assert len(targets) == 60
        index = chain.path.network_time(times_of(slots, targets, chain, 0, positions=1))
        assert 0.9 * latest < float(index.max()) <= latest


def test_context_images_and_copies_have_no_image_loss() -> None:
    items = tiny.layouts("adaln", 8, 10, sequence={"context": "clean_copy"})
    targets = [block for layout in items for block in layout.blocks if block.noised]
    assert tiny.in_rows(items).targets == len(targets)
    assert len(drawn(tiny.in_rows(items))) == len(targets)


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=lambda d: f"{type(d).__name__}-{d.prediction}")
def test_the_global_generator_is_left_alone(diffusion: DiffusionConfig) -> None:
    batch = tiny.in_rows(tiny.layouts("adaln", 6, 4))
    before = torch.random.get_rng_state()
    losses(batch, diffusion)
    assert torch.equal(torch.random.get_rng_state(), before)
