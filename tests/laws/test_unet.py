"""U-Net patches: as many steps down as the patch asks for, skips of the image itself, time everywhere, 0.27B."""

import pytest
import torch
from torch import Tensor

from monoformer.config.model import ModelConfig
from monoformer.model.monoformer import MonoFormer, Place
from monoformer.model.unet import Skips
from tests import tiny


@pytest.mark.parametrize(("patch", "levels"), [(2, 2), (4, 3), (8, 4)])
def test_a_patch_is_so_many_halvings(patch: int, levels: int) -> None:
    network = tiny.model("unet", patch=patch, image_sizes=((16, 24),), channels=5)
    x = torch.randn(2, 5, 16, 24, generator=torch.Generator().manual_seed(0))
    tokens, skips = network.patches(x, network.time(torch.tensor([3.0, 700.0])))
    assert tokens.shape == (2, 16 * 24 // patch**2, 32)
    assert [tuple(kept.shape[-2:]) for kept in skips] == [(16 >> level, 24 >> level) for level in range(levels)]


def both_ways(network: MonoFormer, x: Tensor, time: Tensor, change: Tensor | None = None) -> Tensor:
    """Prediction from fixed hidden states, the skips those of `x` (or of `change`)."""
    _, skips = network.patches(x if change is None else change, network.time(time))
    hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1)).expand(len(x), -1, -1)
    rows = torch.arange(len(x))
    return network.image(hidden, time, Place(rows, torch.zeros_like(rows), (2, 2)), skips)


def test_the_decoder_reads_the_skips_and_images_do_not_mix() -> None:
    network = tiny.model("unet")
    x, other = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([10.0, 500.0, 900.0])
    with torch.no_grad():
        found = both_ways(network, x, time)
        changed = both_ways(network, x, time, torch.cat([x[:1], other[1:]]))
        alone = both_ways(network, x[1:2], time[1:2])
    torch.testing.assert_close(changed[0], found[0], rtol=1e-5, atol=1e-5)
    assert (changed[1:] - found[1:]).abs().mean() > 0.1
    torch.testing.assert_close(alone[0], found[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="needs the skips"):
        network.image(torch.zeros(1, 4, 32), time[:1], Place(torch.tensor([0]), torch.tensor([0]), (2, 2)))


def test_the_time_reaches_both_halves() -> None:
    network = tiny.model("unet", time="token")  # otherwise the time of a "token" model does not touch the patches
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([100.0]), torch.tensor([600.0])
    with torch.no_grad():
        early, late = (network.patches(x, network.time(time))[0] for time in times)
        _, skips = network.patches(x, network.time(times[0]))
        place = Place(torch.tensor([0]), torch.tensor([0]), (2, 2))
        first, second = (network.image(early, time, place, skips) for time in times)
    assert (early - late).abs().mean() > 0.01
    assert (first - second).abs().mean() > 0.01


def unet_parameters(width: int, patch: int, unet_width: int) -> int:
    """What U-Net patches add to a Transfusion backbone beyond linear ones."""
    counts = []
    for changes in ({}, {"image_patches": "unet", "unet_width": unet_width}):
        config = ModelConfig(
            width=width, heads=width // 64, kv_heads=1, layers=1, mlp_width=8, vocabulary=8, patch=patch, channels=8,
            time="add", image_head="linear", image_sizes=((32, 32),), **changes,
        )  # fmt: skip
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in MonoFormer(config).parameters()))
    return counts[1] - counts[0]


@pytest.mark.parametrize(
    ("width", "patch", "unet_width"),
    [(768, 2, 640), (1024, 2, 640), (1536, 2, 640), (2048, 2, 640), (4096, 2, 640), (4096, 4, 464), (4096, 8, 384)],
)
def test_both_directions_add_the_papers_quarter_billion(width: int, patch: int, unet_width: int) -> None:
    assert unet_parameters(width, patch, unet_width) == pytest.approx(0.27e9, rel=0.03)


def test_an_image_without_pixels_to_draw_still_touches_every_weight() -> None:
    network = tiny.model("unet")
    skips: Skips = tuple(kept[:0] for kept in network.patches(torch.zeros(1, 3, 8, 8), network.time(torch.ones(1)))[1])
    none = torch.zeros(0, dtype=torch.long)
    network.image(torch.zeros(1, 4, 32), torch.zeros(0), Place(none, none, (2, 2)), skips).sum().backward()
    assert [name for name, p in network.image_head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_patches": "unet", "unet_width": 8, "patch": 1}, "must be 2, 4, 8"),
        ({"image_patches": "unet", "unet_width": 8, "patch": 6}, "must be 2, 4, 8"),
        ({"image_patches": "unet"}, "multiple of 4 above 0, but is 0"),
        ({"image_patches": "unet", "unet_width": 6}, "multiple of 4 above 0, but is 6"),
        ({"unet_width": 8}, "no effect with linear patches"),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(image_sizes=((48, 48),), **values)  # type: ignore[arg-type]
