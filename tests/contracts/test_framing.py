"""A picture is the same wherever it comes in: in training, in the pipeline, in the commands and in the server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from monoformer.arguments import open_picture
from monoformer.config.data import DataConfig, FolderData, MixtureData, ScenesData, TextData
from monoformer.config.serve import Limits
from monoformer.config.sources import Shape
from monoformer.data.pictures import read_as
from monoformer.evaluate.references import Pictures, open_reference
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.pretrained import load_pretrained, save_pretrained
from monoformer.train.sizes import picture_shape, picture_sizes
from tests import tiny

SIZES = ((16, 16), (8, 24))


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide picture, a photo of a turned camera, 16-bit grey, a palette with transparency, one with a broken note."""
    folder = tmp_path_factory.mktemp("pictures")
    turned = PILImage.Exif()
    turned[0x0112] = 6
    wide = PILImage.fromarray(noise(20, 55, 3))
    wide.save(folder / "a.png")
    wide.save(folder / "b.jpg", exif=turned, quality=95)
    PILImage.fromarray(noise(30, 40).astype(np.uint16) * 257).save(folder / "c.png")
    wide.convert("P").save(folder / "d.png", transparency=3)
    wide.save(folder / "e.jpg", exif=b"Exif\0\0broken")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pipelines() -> dict[Shape, Pipeline]:
    shapes: tuple[Shape, ...] = ("crop", "resize", "bucket")
    made = {s: tiny.pretrained(image_sizes=SIZES if s == "bucket" else SIZES[:1]) for s in shapes}
    return {s: Pipeline(replace(own, picture_shape=s), slots=2) for s, own in made.items()}


def test_what_is_read_in_use_is_what_was_read_in_training(files: list[Path], pipelines: dict[Shape, Pipeline]) -> None:
    pytest.importorskip("fastapi")
    from monoformer.serve.pictures import decode

    for shape, pipeline in pipelines.items():
        config = FolderData(size=16, shape=shape, buckets=SIZES if shape == "bucket" else ())
        reference = open_reference(str(files[0].parent), size=(16, 16), shape=shape)
        assert isinstance(reference, Pictures)
        for number, file in enumerate(files):
            expected = read_as(config, file, name=file.name)
            sent = decode(file.read_bytes(), limits=Limits(), parameter="image")
            for picture in (open_picture(file), sent):
                assert torch.equal(pipeline.context_image(picture).pixels, expected), (shape, file.name)
            if shape != "bucket":
                assert torch.equal(reference.picture(number), expected)
    grey = pipelines["crop"].context_image(open_picture(files[2])).pixels.float()
    assert 100 < grey.mean() < 155, "16-bit grey is not white"


def test_a_mask_lies_where_its_picture_does(files: list[Path], pipelines: dict[Shape, Pipeline]) -> None:
    for pipeline in pipelines.values():
        for file in files[:2]:
            picture = open_picture(file)
            painted = PILImage.new("RGB", picture.size, "black")
            painted.paste("white", (0, 0, picture.width // 2, picture.height * 2 // 3))
            through = pipeline.context_image(painted).pixels[0] > 127
            large = painted.convert("L").resize((picture.width * 2, picture.height * 2))
            mask = pipeline.context_mask(large, picture, or_white=True)
            assert mask.any()
            assert not mask.all()
            assert (mask != through).float().mean() < 0.07, "but for the rounding of its edge"


def test_a_model_folder_says_how_its_pictures_were_prepared(tmp_path: Path) -> None:
    stretched, cropped = FolderData(shape="resize"), FolderData()
    mixed = MixtureData(sources=(TextData(), cropped, stretched), weights=(5.0, 1.0, 2.0))
    expected: list[tuple[DataConfig, Shape]] = [
        (stretched, "resize"), (cropped, "crop"), (mixed, "resize"), (ScenesData(), "bucket"),
    ]  # fmt: skip
    for data, shape in expected:
        assert picture_shape(data, before="bucket") == shape
    save_pretrained(tmp_path / "model", replace(tiny.pretrained(), picture_shape="resize"))
    assert load_pretrained(tmp_path / "model").picture_shape == "resize"
    assert load_pretrained(Path(__file__).parents[1] / "golden" / "version-1").picture_shape == "crop"


def test_scenes_of_words_alone_hold_no_pictures() -> None:
    assert picture_sizes(PRESETS["text-quick"]().data) == set()
    assert picture_sizes(PRESETS["scenes-quick"]().data) == {(32, 32)}
