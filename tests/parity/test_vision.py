"""Vision encoders against transformers: features are its second-last hidden states, pictures its processors'."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoformer.config.vision import VisionConfig
from monoformer.vision import VisionEncoder, build_vision, read_preparation
from tests import encoders, latents

HALVES = {"clip": "vision_model", "siglip": "vision_model"}
FIRST = {
    "clip": 1,
    "clip-vision": 1,
    "siglip": 0,
    "siglip-vision": 0,
    "dino": 1,
    "dinov2": 1,
    "dinov2-registers": 4,
    "dinov3": 3,
}
"""Tokens that are no patches: the class, and DINOv2's registers."""


@pytest.fixture(params=encoders.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def built(path: str, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    encoder = build_vision(VisionConfig(path=path), dtype=dtype)
    assert encoder is not None
    return encoder


def processed(path: str, pixels: Tensor) -> Tensor:
    """What transformers' own image processor, the one that uses PIL, makes of the pictures."""
    import transformers as tf

    described = json.loads((Path(path) / "preprocessor_config.json").read_text())
    of_old = {"ViTFeatureExtractor": "ViTImageProcessor"}.get(described.get("feature_extractor_type"))
    name = described.get("image_processor_type", of_old or "CLIPImageProcessor")
    classes = {
        "CLIPImageProcessor": tf.CLIPImageProcessorPil,
        "SiglipImageProcessor": tf.SiglipImageProcessorPil,
        "BitImageProcessor": tf.BitImageProcessorPil,
        "ViTImageProcessor": tf.ViTImageProcessorPil,
        "DINOv3ViTImageProcessor": tf.ViTImageProcessorPil,  # its own needs torchvision; the settings are the same
    }
    found: Tensor = classes[name].from_pretrained(path)(list(pixels), return_tensors="pt")["pixel_values"]
    return found


@pytest.mark.parametrize("size", [(12, 12), (16, 24), (50, 31), (7, 9)])
def test_pictures_are_prepared_as_transformers_does_to_a_level(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    path = encoders.save(kind, tmp_path / "encoder")
    noise = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for pixels in (latents.pictures(2, size=size), noise):
        ours, theirs = read_preparation(Path(path))(pixels), processed(path, pixels)
        assert ours.shape == theirs.shape == (2, 3, 12, 12)
        levels = (ours - theirs).abs() * torch.tensor(encoders.STATISTICS["image_std"])[:, None, None] * 255
        assert float(levels.max()) < 1.01, "one rounding apart: PIL computes in 22 bits"
        assert float((levels > 0.5).float().mean()) < 0.02, "and seldom"


def test_features_are_the_second_last_hidden_states_without_class_and_registers(kind: str, tmp_path: Path) -> None:
    path, pixels = encoders.save(kind, tmp_path / "encoder"), latents.pictures(3)
    network = encoders.network(kind)
    half = getattr(network, HALVES[kind]) if kind in HALVES else network
    encoder = built(path)
    assert (encoder.width, encoder.grid) == (encoders.WIDTH, encoders.GRID)
    with torch.no_grad():
        states = half(pixel_values=encoder.prepare(pixels), output_hidden_states=True).hidden_states
    assert len(states) == 3
    expected = states[1][:, FIRST[kind] :]
    assert expected.shape == (3, 9, encoders.WIDTH)
    features = encoder.encode(pixels)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert features.std(dim=0).mean() > 1e-3, "different pictures, different features"
    assert not features.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(pixels), features)
    rounded = built(path, torch.bfloat16).encode(pixels)
    assert rounded.dtype == torch.float32
    assert 0.99 < float(torch.corrcoef(torch.stack([rounded.flatten(), features.flatten()]))[0, 1]) < 1


def test_alone_as_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pixels = built(encoders.save("dinov2", tmp_path / "encoder")), latents.pictures(5)
    together = encoder.encode(pixels)
    monkeypatch.setattr("monoformer.vision.CHUNK", 2 * 12 * 12)
    torch.testing.assert_close(encoder.encode(pixels), together, rtol=1e-5, atol=1e-5)
