"""Three ways to change a picture, side by side: by instruction, gently, and only inside a mask.

python examples/edit_picture.py models/monoformer-mini circle.png "make the red circle blue" --out edits.png

The mask here is the picture's left half; outside of it every pixel stays as it was.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from monoformer import Pipeline
from monoformer.gallery import Cell, Section, draw_gallery


def main() -> None:
    """Edit and show."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("picture", type=Path)
    options.add_argument("instruction")
    options.add_argument("--out", type=Path, default=Path("edits.png"))
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    pipeline = Pipeline.from_pretrained(given.model)
    with Image.open(given.picture) as opened:
        before = pipeline.context_image(opened).to_pil()  # at the size that the model knows
    mask = Image.new("L", before.size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, before.width // 2 - 1, before.height), fill=255)
    edited = {
        "by instruction": pipeline.edit(before, given.instruction, seed=given.seed)[0],
        "strength 0.6": pipeline.edit(before, given.instruction, strength=0.6, seed=given.seed)[0],
        "left half only": pipeline.edit(before, given.instruction, mask=mask, seed=given.seed)[0],
    }
    right = (before.width // 2, 0, before.width, before.height)
    same = edited["left half only"].crop(right).tobytes() == before.convert("RGB").crop(right).tobytes()
    print(f"outside the mask {'nothing' if same else 'something'} changed")
    cells = tuple(Cell((before, after), name) for name, after in edited.items())
    draw_gallery([Section(given.instruction, cells)]).save(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
