"""A sequence taken apart: what its tokens are, and who sees whom, as a picture.

Knows nothing of weights. Invariant: what is painted is `model.attention.visible`, the rule that attention itself uses.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from monoformer.batch import Layout
from monoformer.model.attention import dense_mask
from monoformer.packing import collate
from monoformer.tokenizer import Tokenizer

Kind: TypeAlias = Literal["text", "noised", "clean"]

COLOURS: dict[Kind, tuple[int, int, int]] = {"text": (76, 120, 168), "noised": (228, 87, 86), "clean": (84, 162, 75)}
"""Red, green and blue of each kind of token."""

LEGEND: dict[Kind, str] = {"text": "text token", "noised": "noised image (to be drawn)", "clean": "clean image"}


@dataclass(frozen=True)
class Part:
    """Tokens that are named together: one token of text, or all patches of one image."""

    name: str
    kind: Kind
    tokens: int = 1


def take_apart(layout: Layout, tokenizer: Tokenizer) -> list[Part]:
    """The parts of a document in reading order; their tokens are the layout's."""
    blocks = {block.start: block for block in layout.blocks}
    parts: list[Part] = []
    index = 0
    while index < len(layout):
        block = blocks.get(index)
        if block is None:
            ahead = blocks.get(index + 1)
            is_time = ahead is not None and layout.ids[index] == tokenizer.time
            kind: Kind = "text" if not is_time else "noised" if ahead is not None and ahead.noised else "clean"
            parts.append(Part(_name(layout.ids[index], tokenizer), kind))
        else:
            count = block.grid[0] * block.grid[1]
            parts.append(Part(f"{count} patches", "noised" if block.noised else "clean", count))
        index += parts[-1].tokens
    return parts


def paint_mask(layouts: Sequence[Layout], tokenizer: Tokenizer, *, inches: float = 8.5) -> PILImage.Image:
    """Who sees whom in a packed row of these documents: a square for each pair of tokens, RGB, `inches` at 110 dpi.

    A square has the colour of what is seen, full where an image looks ahead within itself.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts = [part for layout in layouts for part in take_apart(layout, tokenizer)]
    colours = mask_colours(layouts, tokenizer)
    length = len(colours)
    figure = Figure(figsize=(inches, inches), layout="constrained")
    axis = figure.subplots()
    axis.imshow(colours, interpolation="nearest", extent=(0, length, length, 0))
    step = inches * 72 / length  # points for one token
    if step >= 5:  # below that the lines would hide the squares
        for at in range(1, length):
            axis.axhline(at, color="white", linewidth=0.05 * step)
            axis.axvline(at, color="white", linewidth=0.05 * step)
    ends = np.cumsum([part.tokens for part in parts]).tolist()
    legible = [(end - part.tokens / 2, part) for end, part in zip(ends, parts, strict=True) if part.tokens * step >= 4]
    ticks, labels = [at for at, _ in legible], [part.name for _, part in legible]
    axis.xaxis.tick_top()
    axis.set_xticks(ticks, labels, rotation=90, family="monospace")
    axis.set_yticks(ticks, labels, family="monospace")
    for named in (axis.get_xticklabels(), axis.get_yticklabels()):
        for label, (_, part) in zip(named, legible, strict=True):
            label.set_fontsize(min(7.0, 0.95 * step * part.tokens))
    axis.set_xlabel("is seen (key)")
    axis.set_ylabel("sees (query)")
    handles = [Patch(color="#" + bytes(colour).hex()) for colour in COLOURS.values()]
    axis.legend(handles, list(LEGEND.values()), loc="upper right", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return PILImage.open(file).convert("RGB")


def mask_colours(layouts: Sequence[Layout], tokenizer: Tokenizer) -> NDArray[np.uint8]:
    """uint8 (T, T, 3): the seen token's colour, paler where it lies behind; white where nothing is seen."""
    length = sum(map(len, layouts))
    batch = collate([list(layouts)], length=length, pad=tokenizer.pad)
    mask = dense_mask(batch)[0, 0].numpy()
    parts = [part for layout in layouts for part in take_apart(layout, tokenizer)]
    keys = np.array([COLOURS[part.kind] for part in parts for _ in range(part.tokens)])
    ahead = np.triu(np.ones((length, length), dtype=bool), 1)
    strength = np.where(ahead, 1.0, 0.75)[..., None]
    seen = 255 - strength * (255 - keys[None, :, :])
    return np.where(mask[..., None], seen, 255.0).astype(np.uint8)


def _name(token: int, tokenizer: Tokenizer) -> str:
    """A token as it is written in the vocabulary, its leading space as an underscore."""
    name = str(tokenizer.backend.convert_ids_to_tokens(token))
    return name.replace("\u0120", "_").replace("\u2581", "_").replace("\u010a", "\\n")
