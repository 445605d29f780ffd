"""A finished tiny run, and a folder of pictures as a user has them."""

from pathlib import Path

import pytest
from PIL import Image as PILImage

from monoformer.cli.main import main
from monoformer.data.scenes import Scenes, draw
from monoformer.presets import PRESETS

SMALL = [
    "--model.width=32", "--model.heads=2", "--model.kv-heads=1", "--model.mlp-width=64", "--model.layers=2",
    "--train.rows=2", "--train.steps=4", "--train.warmup=1", "--train.log-every=1", "--train.checkpoint-every=2",
    "--sequence.window=16", "--generate.steps=2", "--generate.max-tokens=8",
]  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run on scenes, which every test leaves as it is."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    main(["train", "scenes-quick", f"--folder={folder}", "--train.sample-every=2", *SMALL])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six captioned pictures, as a user has them."""
    folder = tmp_path_factory.mktemp("pictures")
    scenes = Scenes(PRESETS["scenes-quick"]().data)  # type: ignore[arg-type]
    for index in range(6):
        drawing = scenes.drawing(index)
        array = draw(drawing.scene, 48).permute(1, 2, 0).numpy()
        PILImage.fromarray(array).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(drawing.caption, encoding="utf-8")
    return folder
