"""Pictures with words under them, as one picture. Knows nothing of models.

Invariant: words in any script are drawn, or it is said that no font here has them; never as empty boxes.
"""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

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
        pen.text((GAP, top), drawable(title), fill="black", font=find_font(title, 16))
        top += 28
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
            pen.text((left, below + number * LINE), line, fill="#333", font=find_font(cell.text, 11))
    return strip


@cache
def find_font(text: str, size: int) -> Font:
    """Pillow's own font where it has all characters of the text, else the font of this machine that has the most."""
    own, strange = ImageFont.load_default(size), _strange(text)
    if _lacks(own, strange) == 0:
        return own
    best, fewest = own, _lacks(own, strange)
    for path in _fonts():
        if (font := _load(path, size)) and _lacks(font, strange) < fewest:
            best, fewest = font, _lacks(font, strange)
        if fewest == 0:
            break
    return best


def drawable(text: str) -> str:
    """The text, with runs of characters that its font has not replaced by their number: `[no font: 7]`."""
    font = find_font(text, 11)
    lacks = [character for character in _strange(text) if _lacks(font, character)]
    if not lacks:
        return text
    return re.sub(f"[{''.join(map(re.escape, lacks))}]+", lambda match: f"[no font: {len(match[0])}]", text)


def _strange(text: str) -> str:
    """The text's distinct characters outside of ASCII, those without a shape of their own left out."""
    return "".join(sorted({c for c in text if not c.isascii() and unicodedata.category(c)[0] not in "CZ"}))


def _lacks(font: Font, characters: str) -> int:
    """How many of the characters look like one that no font has."""
    missing = _shape(font, "\U0010ffff")
    return sum(_shape(font, character) == missing for character in characters)


def _shape(font: Font, character: str) -> tuple[object, ...]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def _fonts() -> tuple[str, ...]:
    """Font files of this machine, but for those that show every character as a box with its number."""
    from matplotlib import font_manager

    return tuple(dict.fromkeys(f.fname for f in font_manager.fontManager.ttflist if "Last Resort" not in f.name))


def _load(path: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # a font in a form that this Pillow does not read
        return None


def _wrap(cell: Cell) -> list[str]:
    """Lines of at most 29 characters, of which Chinese, Japanese and Korean ones count twice."""
    return [line for part in drawable(cell.text).splitlines() for line in (_lines(part, 29) or [""])]


def _lines(text: str, width: int) -> list[str]:
    if not any(_wide(character) for character in text):
        return textwrap.wrap(text, width)
    lines, room = [""], width
    for character in text:
        room -= 1 + _wide(character)
        if room < 0:
            lines, room = [*lines, ""], width - 1 - _wide(character)
        lines[-1] += character
    return lines


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"
