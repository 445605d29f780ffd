"""Emoji drawn from their names beside the true ones: seen in training, held-out skin tones, edits, unknown names.

python benchmarks/emoji.py runs/emoji/model EMOJI.parquet runs/beside.png --count 128

Prints how many drawn pictures are nearer (in pixels) to their own true picture than to 99 others.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image as PILImage

from monoformer import Pipeline
from monoformer.data.images import ParquetPictures
from monoformer.document import Image
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.presets.small import EMOJI

SHOWN = 24


def nearest(drawn: list[PILImage.Image], true: list[torch.Tensor], others: torch.Tensor) -> int:
    """How many drawn pictures are nearer to their own than to any of the others (N, 3, H, W)."""
    found = 0
    for picture, own in zip(drawn, true, strict=True):
        pixels = Image.from_pil(picture).pixels.float()
        rivals = others[(others != own).flatten(1).any(dim=1)].float()
        found += int((pixels - own.float()).square().mean() <= (rivals - pixels).square().flatten(1).mean(dim=1).min())
    return found


def main() -> None:
    """Draw, count and show."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("file", help="the parquet file")
    options.add_argument("out", type=Path)
    options.add_argument("--count", type=int, default=128, help="pictures of each kind")
    given = options.parse_args()
    pipeline = Pipeline.from_pretrained(given.model)
    config = replace(EMOJI, files=(given.file,))
    train, test = ParquetPictures(config), ParquetPictures(config, split="test")
    pairs = {target: source for source, target in test.edit_pairs}
    step = max(1, len(train.rows) // given.count)
    kinds = {
        "names seen in training": list(train.rows[::step])[: given.count],
        "skin tones left out of training": sorted(pairs)[: given.count],
        "names never seen": [row for row in test.rows if row not in pairs][: given.count],
    }
    others = torch.stack([train.picture(row) for row in train.rows[7 :: len(train.rows) // 99][:99]])
    sections = []
    for title, rows in kinds.items():
        true = [test.picture(row) for row in rows]
        drawn = pipeline.generate_images([test.caption(row) for row in rows], seed=list(range(len(rows))))
        said = pipeline.caption([Image(pixels=pixels).to_pil() for pixels in true])
        named = sum(a == test.caption(row) for a, row in zip(said, rows, strict=True))
        print(f"{title}: {nearest(drawn, true, others)} of {len(rows)} nearest to their own, {named} named exactly")
        cells = [
            Cell((Image(pixels=a).to_pil(), b), test.caption(row))
            for a, b, row in zip(true, drawn, rows, strict=True)
        ]  # fmt: skip
        sections.append(Section(f"{title}: true, drawn", tuple(cells[:SHOWN])))
    rows = sorted(pairs)[: given.count]
    before = [test.picture(pairs[row]) for row in rows]
    texts, pictures = [test.instruction(row) for row in rows], [Image(pixels=x).to_pil() for x in before]
    drawn = pipeline.edit(pictures, texts, seed=list(range(len(rows))))
    found = nearest(drawn, [test.picture(row) for row in rows], torch.stack(before))
    print(f"edits to left-out skin tones: {found} of {len(rows)} nearer to the true one than to any picture before")
    cells = [Cell((a, b), f"{test.caption(pairs[row])}: {text}") for a, b, row, text in zip(pictures, drawn, rows, texts, strict=True)]  # fmt: skip  # noqa: E501
    sections.append(Section("edits to left-out skin tones: before, drawn", tuple(cells[:SHOWN])))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw_gallery(sections).save(given.out)


if __name__ == "__main__":
    main()
