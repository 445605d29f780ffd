"""Teach a language model to draw, and see that it writes as before.

python examples/from_llama.py LLAMA pictures/     (LLAMA: a folder or hub name; pictures with captions beside them)

The image tokens get weights of their own (LMFusion's way), and the text path keeps every bit.
"""

import sys

import torch

from monoformer import Pipeline
from monoformer.cli.training import read_config, run
from monoformer.train.build import build_run

BEGINNING = "Once upon a time"


def main(llama: str, root: str, options: list[str]) -> None:
    """Write, train the image side, draw, and write the same again."""
    keep = ["--model.experts", "modality", "--train.freeze", "text"]
    config = read_config(["folder", "--from", llama, "--data.root", root, "--name", "from-llama", *keep, *options])
    built = build_run(config)
    print(built.news)
    before = Pipeline(built.pretrained, slots=2).generate_text(BEGINNING, max_tokens=40)[0]
    if not run(built):
        return
    pipeline = Pipeline.from_pretrained(config.model_path, dtype=torch.float32, slots=2)
    pipeline.generate_images("a picture", seed=0)[0].save(config.path / "drawn.png")
    after = pipeline.generate_text(BEGINNING, max_tokens=40)[0]
    print(f"{BEGINNING}{after}")
    print("word for word what it wrote before" if after == before else f"before, it wrote: {before}")
    print(config.path / "drawn.png")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("name both: python examples/from_llama.py LLAMA pictures/")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
