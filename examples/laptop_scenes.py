"""Train a small model of drawn scenes on a laptop, draw some captions that it never saw, and score it.

python examples/laptop_scenes.py                            (two CPU cores, about five minutes)
python examples/laptop_scenes.py --train.steps 4000         (any option of `monoformer train scenes-quick`)
"""

import sys

from monoformer import Pipeline
from monoformer.cli.training import read_config, run
from monoformer.config.data import ScenesData
from monoformer.data.scenes import Scenes
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.train.build import build_run


def main(options: list[str]) -> None:
    """Train, draw, score."""
    config = read_config(["scenes-quick", "--name", "laptop-scenes", *options])
    if not run(build_run(config)):
        return  # stopped by Ctrl-C and saved; the same command goes on
    assert isinstance(config.data, ScenesData)
    pipeline = Pipeline.from_pretrained(config.model_path)
    captions = [Scenes(config.data, split="test").drawing(number).caption for number in range(12)]
    pictures = pipeline.generate_images(captions, seed=0)
    cells = tuple(Cell((picture,), caption) for picture, caption in zip(pictures, captions, strict=True))
    draw_gallery([Section("captions that training left out", cells)]).save(config.path / "drawn.png")
    for name, share in SceneEvaluator(pipeline, config.data, count=32, tasks=("draw",)).run():
        print(f"{name}: {share:.1%}")
    print(config.path / "drawn.png")


if __name__ == "__main__":
    main(sys.argv[1:])
