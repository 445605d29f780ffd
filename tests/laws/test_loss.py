"""The loss: global counts, k accumulated passes = one big batch, times and noise keyed by document and image."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.batch import Batch, Layout
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.objectives import build_objective
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
    if mode in ("token", "causal"):
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
