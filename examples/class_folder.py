"""Draw from class names: a folder of class folders, as ImageNet is laid out, from nothing.

python examples/class_folder.py pictures/                    (pictures/CLASS/NAME.png; an hour on two CPU cores)
python examples/class_folder.py pictures/ --train.steps 500  (any option of `monoformer train folder`)
"""

import sys

from monoformer import Pipeline
from monoformer.cli.training import read_config, run
from monoformer.config.data import FolderData
from monoformer.data.images import FolderPictures
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.train.build import build_run

PROMPT = "Please generate an image of {}."
"""MonoFormer's way to ask for a class."""


def main(root: str, options: list[str]) -> None:
    """Train on the class folders, then draw one picture of each class."""
    asked = ["--data.root", root, "--data.prompt", PROMPT, "--data.describe", "0", "--name", "class-folder"]
    config = read_config(["folder", *asked, *options])
    if not run(build_run(config)):
        return
    assert isinstance(config.data, FolderData)
    trained = FolderPictures(config.data)
    prompts = sorted({trained.prompt(row) for row in trained.rows})[:24]
    pipeline = Pipeline.from_pretrained(config.model_path)
    pictures = pipeline.generate_images(prompts, seed=0)
    cells = tuple(Cell((picture,), prompt) for picture, prompt in zip(pictures, prompts, strict=True))
    draw_gallery([Section("one of each class", cells)]).save(config.path / "classes.png")
    print(config.path / "classes.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("name the folder: python examples/class_folder.py pictures/")
    main(sys.argv[1], sys.argv[2:])
