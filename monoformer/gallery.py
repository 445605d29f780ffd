"""Pictures with words under them, as one picture. Knows nothing of models."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

CELL = 168
"""Width in pixels of one cell."""
GAP = 12
LINE = 14


@dataclass(frozen=True)
class Cell:
    """One or more pictures side by side (before and after, ours and the true one), and the words under them."""

    pictures: tuple[PILImage.Image, ...]
    text: str


@dataclass(frozen=True)
class Section:
    """A titled row of cells; it wraps."""

    title: str
    cells: tuple[Cell, ...]


def draw_gallery(sections: Sequence[Section], *, columns: int = 6) -> PILImage.Image:
    """All sections under each other, RGB."""
    rows = [
        (section.title if first == 0 else "", section.cells[first : first + columns])
        for section in sections
        for first in range(0, max(1, len(section.cells)), columns)
    ]
    strips = [_strip(title, cells, columns) for title, cells in rows]
    canvas = PILImage.new("RGB", (columns * (CELL + GAP) + GAP, sum(s.height for s in strips) + GAP), "white")
    top = 0
    for strip in strips:
        canvas.paste(strip, (0, top))
        top += strip.height
    return canvas


def _strip(title: str, cells: Sequence[Cell], columns: int) -> PILImage.Image:
    texts = [_wrap(cell) for cell in cells]
    tall = max((CELL // len(cell.pictures) for cell in cells if cell.pictures), default=0)
    height = GAP + (28 if title else 0) + tall + LINE * max((len(t) for t in texts), default=0) + GAP
    strip = PILImage.new("RGB", (columns * (CELL + GAP) + GAP, height), "white")
    pen = ImageDraw.Draw(strip)
    top = GAP
    if title:
        pen.text((GAP, top), title, fill="black", font=ImageFont.load_default(16))
        top += 28
    font = ImageFont.load_default(11)
    for column, (cell, lines) in enumerate(zip(cells, texts, strict=True)):
        left = GAP + column * (CELL + GAP)
        side = CELL // max(1, len(cell.pictures))
        for index, picture in enumerate(cell.pictures):
            shown = picture.convert("RGB").resize((side - 2, side - 2), PILImage.Resampling.NEAREST)
            strip.paste(shown, (left + index * side, top))
            pen.rectangle(
                (left + index * side - 1, top - 1, left + index * side + side - 2, top + side - 2), outline="#ccc"
            )
        below = top + (side if cell.pictures else 0) + 2
        for number, line in enumerate(lines):
            pen.text((left, below + number * LINE), line, fill="#333", font=font)
    return strip


def _wrap(cell: Cell) -> list[str]:
    width = 29
    return [line for part in cell.text.splitlines() for line in (textwrap.wrap(part, width) or [""])]
