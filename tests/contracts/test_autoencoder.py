"""What every autoencoder promises: shapes, range, scale, the same bits again, tiles close to the whole."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import (
    Autoencoder,
    LatentAutoencoder,
    Pixels,
    build_autoencoder,
    check_fits,
    in_tiles,
    keep_autoencoder,
    kept_autoencoder,
)
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.model import ModelConfig
from tests import latents, taef2

pytest.importorskip("diffusers")

NAMES = ("pixels", *latents.KINDS, "taef2")
Make = Callable[..., Autoencoder]


@pytest.fixture(params=NAMES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes the autoencoder anew, with options, as a run would."""
    name: str = request.param
    if name == "taef2":
        weights = request.getfixturevalue("shared_data") / "weights"
        return lambda **options: taef2.load(weights, **options)
    path = "" if name == "pixels" else latents.save(name, tmp_path / name)
    return lambda **options: build_autoencoder(AutoencoderConfig(path=path, **options))


def test_shapes_types_and_range(make: Make) -> None:
    autoencoder, pixels = make(), latents.pictures()
    latent = autoencoder.encode(pixels)
    shape = (3, autoencoder.channels, 16 // autoencoder.down, 24 // autoencoder.down)
    assert latent.shape == shape
    assert latent.dtype == torch.float32
    assert not latent.requires_grad
    assert bool(latent.isfinite().all())
    again = autoencoder.decode(latent)
    assert again.shape == pixels.shape
    assert again.dtype == torch.uint8
    wild = autoencoder.decode(1e4 * torch.ones(shape))
    assert wild.dtype == torch.uint8, "whatever the sampler ends with is a picture"


def test_the_same_bits_again(make: Make) -> None:
    first, second, pixels = make(), make(), latents.pictures()
    assert torch.equal(first.encode(pixels), second.encode(pixels))
    assert torch.equal(first.decode(first.encode(pixels)), second.decode(second.encode(pixels)))
    assert torch.equal(first.moments(pixels)[0], first.encode(pixels))


def test_alone_as_among_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, pixels = make(), latents.pictures(5)
    together = autoencoder.encode(pixels)
    monkeypatch.setattr("monoformer.autoencoder.CHUNK", 2 * 16 * 24)
    torch.testing.assert_close(autoencoder.encode(pixels), together, rtol=1e-5, atol=1e-5)
    difference = autoencoder.decode(together).int() - torch.cat([autoencoder.decode(z[None]) for z in together]).int()
    assert int(difference.abs().max()) <= 1


def test_it_takes_no_gradient_and_no_autocast(make: Make) -> None:
    autoencoder, pixels = make(), latents.pictures()
    plain = autoencoder.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(autoencoder.encode(pixels), plain)
        assert torch.equal(autoencoder.decode(plain), autoencoder.decode(plain))


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    config, pixels = AutoencoderConfig(path=latents.save("kl4", tmp_path / "kl4")), latents.pictures()
    exact, rounded = build_autoencoder(config), build_autoencoder(config, dtype=torch.bfloat16)
    latent = exact.encode(pixels)
    assert rounded.encode(pixels).dtype == torch.float32
    assert 0.99 < likeness(rounded.encode(pixels), latent) < 1
    assert likeness(rounded.decode(latent).float(), exact.decode(latent).float()) > 0.99


def test_scale_and_shift_are_the_configurations_own() -> None:
    pixels = latents.pictures()
    x = pixels.float() / 127.5 - 1
    for kind, scale, shift in (("kl4", 0.6, 0.1), ("tiny", 0.5, 0.25), ("dc", 0.7, 0.0)):
        network = latents.network(kind)
        with torch.no_grad():
            found = network.encode(x)
            raw = {"kl4": lambda f: f.latent_dist.mean, "tiny": lambda f: f.latents, "dc": lambda f: f.latent}[kind](
                found
            )
            decoded = network.decode(raw).sample
        autoencoder = LatentAutoencoder(network)
        latent = autoencoder.encode(pixels)
        torch.testing.assert_close(latent, (raw - shift) * scale)
        expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
        assert float((autoencoder.decode(latent).float() - expected).abs().max()) <= 1, kind


def test_statistics_of_each_channel_replace_the_shift() -> None:
    network, pixels = latents.network("kl-statistics"), latents.pictures()
    with torch.no_grad():
        raw = network.encode(pixels.float() / 127.5 - 1).latent_dist.mean
    mean, deviation = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (raw - mean[:, None, None]) / deviation[:, None, None] * 0.6
    torch.testing.assert_close(LatentAutoencoder(network).encode(pixels), expected)


def test_a_posterior_has_a_deviation_only_where_training_samples() -> None:
    network, pixels = latents.network("kl4"), latents.pictures()
    with torch.no_grad():
        expected = network.encode(pixels.float() / 127.5 - 1).latent_dist.std * 0.6
    assert LatentAutoencoder(network).moments(pixels)[1] is None
    deviation = LatentAutoencoder(network, sample=True).moments(pixels)[1]
    assert deviation is not None
    torch.testing.assert_close(deviation, expected)


@pytest.mark.parametrize("side", [(7, 9), (8, 8), (5, 20), (16, 3), (4, 4)])
def test_tiles_of_a_pointwise_function_are_the_whole(side: tuple[int, int]) -> None:
    x = torch.rand(2, 3, side[0] * 4, side[1] * 4)

    def shrink(part: Tensor) -> Tensor:
        assert max(part.shape[-2:]) <= 5 * 4
        return torch.nn.functional.avg_pool2d(part, 2).square()

    torch.testing.assert_close(in_tiles(shrink, x, tile=5, cell=4, made=2), shrink_whole(x))


def shrink_whole(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x, 2).square()


@pytest.mark.parametrize("kind", latents.KINDS)
@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
def test_tiles_are_close_to_the_whole(kind: str, size: tuple[int, int]) -> None:
    """With random weights and pixels; a misplaced tile leaves no likeness, a norm that sees one tile leaves most."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, *size), generator=random, dtype=torch.uint8)
    network = latents.network(kind)
    whole, tiled = LatentAutoencoder(network), LatentAutoencoder(network, tile=32)
    latent = whole.encode(pixels)
    assert 0.9 < likeness(tiled.encode(pixels), latent) < 1
    assert 0.75 < likeness(tiled.decode(latent).float(), whole.decode(latent).float()) < 1


def likeness(first: Tensor, second: Tensor) -> float:
    """Correlation of all values."""
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def test_photographs_come_back(shared_data: Path) -> None:
    from monoformer.config.data import ParquetData
    from monoformer.data.images import ParquetPictures

    file = shared_data / "flickr8k96" / "test.parquet"
    source = ParquetPictures(ParquetData(files=(str(file),), caption="{captions}", size=128))
    pixels = torch.stack([source.picture(row) for row in range(8)])
    autoencoder = taef2.load(shared_data / "weights")
    latent = autoencoder.encode(pixels)
    again = autoencoder.decode(latent)
    assert latents.psnr(again, pixels) > 28
    assert 0.8 < float(latent.std()) < 1.2
    tiled = taef2.load(shared_data / "weights", tile=96)
    loss = latents.psnr(again[:1], pixels[:1]) - latents.psnr(tiled.decode(tiled.encode(pixels[:1])), pixels[:1])
    assert 0 < loss < 0.5


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    def fails(match: str, path: str = str(tmp_path / "kl4")) -> None:
        with pytest.raises(ValueError, match=match):
            build_autoencoder(AutoencoderConfig(path=path))

    folder = tmp_path / "kl4"
    fails("neither a folder here nor a hub name")
    fails("nobody/nothing", "nobody/nothing")
    folder.mkdir()
    fails(r"no config\.json")
    shutil.rmtree(folder)
    latents.save("kl4", folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "_class_name": "Pipeline"}))
    fails("class 'Pipeline' is unknown; there are AutoencoderKL")
    (folder / "config.json").write_text(json.dumps({**described, "layers_per_block": 2}))
    fails("do not fit")
    (folder / "config.json").write_text(json.dumps({**described, "latent_channels": 8}))
    fails("cannot be loaded|do not fit")
    (folder / "config.json").write_text(json.dumps(described))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails("cannot be loaded")
    weights.unlink()
    fails("cannot be loaded")


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do nothing to pixels"):
        AutoencoderConfig(posterior="sample")
    with pytest.raises(ValueError, match="do nothing to pixels"):
        AutoencoderConfig(tile=8)
    with pytest.raises(ValueError, match="at least 1"):
        AutoencoderConfig(path="x", tile=0)
    for kind in ("tiny", "dc"):
        with pytest.raises(ValueError, match="no posterior"):
            LatentAutoencoder(latents.network(kind), sample=True)
    with pytest.raises(ValueError, match="multiple of 4"):
        LatentAutoencoder(latents.network("kl4"), tile=30)
    with pytest.raises(ValueError, match=r"set --model\.channels 3 --model\.down 1"):
        check_fits(Pixels(), ModelConfig(channels=4))
    with pytest.raises(ValueError, match="multiples of 16"):
        ModelConfig(down=8, patch=2, image_sizes=((40, 48),))


def test_without_diffusers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents.save("kl4", tmp_path / "kl4")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'monoformer\[autoencoders\]'"):
        build_autoencoder(AutoencoderConfig(path=str(tmp_path / "kl4")))


def test_a_copy_is_kept_and_a_large_one_from_the_hub_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = AutoencoderConfig(path=latents.save("kl4", tmp_path / "source"), posterior="sample")
    for place in ("first", "second", "third"):
        (tmp_path / place).mkdir()
    kept = keep_autoencoder(local, tmp_path / "first")
    assert kept.path == "autoencoder"
    found = kept_autoencoder(kept, tmp_path / "first")
    assert found.posterior == "sample"
    pixels = latents.pictures()
    assert torch.equal(build_autoencoder(found).encode(pixels), build_autoencoder(local).encode(pixels))
    monkeypatch.setattr("monoformer.hub.locate", lambda path, **options: tmp_path / "source")
    hub = AutoencoderConfig(path="owner/name")
    assert keep_autoencoder(hub, tmp_path / "second").path == "autoencoder"
    monkeypatch.setattr("monoformer.hub.COPIED", 1000)
    assert keep_autoencoder(hub, tmp_path / "third") == hub
    assert not list((tmp_path / "third").iterdir())


def test_a_name_that_only_python_knows_is_kept(tmp_path: Path) -> None:
    named = AutoencoderConfig(path="taef2")
    assert keep_autoencoder(named, tmp_path) == kept_autoencoder(named, tmp_path) == named
    with pytest.raises(ValueError, match="taef2"):
        build_autoencoder(named)
