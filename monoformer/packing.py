"""Documents, planned or laid out, to rows, and rows to a Batch.

Knows nothing of tokenizers or networks. Invariant: packing is a function of the window's documents alone (best fit,
then an order keyed by the seed), images are never cut, and no document is in two rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from monoformer.batch import IGNORED, Batch, Block, ImageSlots, Layout
from monoformer.randomness import generator

Row = list[Layout]
"""Documents side by side in one row."""


class Sized(Protocol):
    """What packing knows of a document."""

    @property
    def document(self) -> int:
        """Its global number."""
        ...

    def __len__(self) -> int: ...


Packed = TypeVar("Packed", bound=Sized)


def pack(items: Sequence[Packed], *, length: int, seed: int = 0) -> list[list[Packed]]:
    """Best-fit decreasing into rows of `length` tokens, rows then shuffled by `(seed, first document)`.

    Documents that are longer than a row must have been left out.
    """
    items = sorted(items, key=lambda item: item.document)
    rows = [[items[at] for at in row] for row in best_fit([len(item) for item in items], length=length)]
    if not rows:
        return rows
    order = torch.randperm(len(rows), generator=generator(seed, items[0].document, "rows")).tolist()
    return [rows[i] for i in order]


def best_fit(lengths: Sequence[int], *, length: int) -> list[list[int]]:
    """Rows of indices: the longest item first, each into the row that it fills best; none is longer than a row."""
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for item in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        size = lengths[item]
        assert size <= length, f"an item of {size} tokens is longer than a row of {length}"
        at = bisect_left(space, (size, -1))
        if at == len(space):
            rows.append([])
            insort(space, (length, len(rows) - 1))
            at = bisect_left(space, (length, -1))
        free, row = space.pop(at)
        rows[row].append(item)
        insort(space, (free - size, row))
    return rows


def collate(rows: Sequence[Row], *, length: int, pad: int) -> Batch:
    """Rows as tensors (B, T = length), images grouped by size."""
    blocks: list[tuple[Block, int, int, int]] = []  # block, row, offset, global document number
    columns: list[list[list[int]]] = [[] for _ in range(7)]  # ids, positions, document, source, end, private, labels
    for row, layouts in enumerate(rows):
        joined: list[list[int]] = [[] for _ in columns]
        for number, layout in enumerate(layouts):
            size, offset = len(layout), len(joined[0])
            blocks += [(block, row, offset, layout.document) for block in layout.blocks]
            ends = [offset + e for e in layout.end]
            numbers = [number] * size, [layout.source] * size
            parts = (layout.ids, layout.positions, *numbers, ends, layout.private, layout.labels)
            for values, part in zip(joined, parts, strict=True):
                values += part
        filled = len(joined[0])
        left, ends = length - filled, list(range(filled + 1, length + 1))
        padding = ([pad] * left, [0] * left, [-1] * left, [-1] * left, ends, [0] * left, [IGNORED] * left)
        for column, values, filler in zip(columns, joined, padding, strict=True):
            column.append([*values, *filler])
    ids, positions, document, source, end, private, labels = (torch.tensor(column) for column in columns)
    return Batch(
        ids=ids,
        positions=positions,
        document=document,
        source=source,
        end=end,
        private=private,
        labels=labels,
        images=group_blocks(blocks),
        vision=group_blocks(blocks, by_encoder=True),
    )


def group_blocks(blocks: Sequence[tuple[Block, int, int, int]], *, by_encoder: bool = False) -> tuple[ImageSlots, ...]:
    """Image slots of one kind from (block, row, offset of its layout, global document number): one group a size, and
    one more where some pictures of that size come from a cache of latents.
    """
    sizes: dict[tuple[int, int, bool], list[tuple[Block, int, int, int]]] = {}
    for entry in blocks:
        if entry[0].by_encoder != by_encoder:
            continue
        height, width = entry[0].pixels.shape[-2:]
        sizes.setdefault((height, width, entry[0].moments is not None), []).append(entry)
    return tuple(_slots(sizes[size]) for size in sorted(sizes))


def _slots(entries: Sequence[tuple[Block, int, int, int]]) -> ImageSlots:
    pictures: dict[tuple[int, int, int], int] = {}  # (row, document, image) -> M index; a copy shares its picture
    pixels: list[Tensor] = []
    moments: list[Tensor] = []
    keys: list[tuple[int, int]] = []
    picture: list[int] = []
    for block, row, offset, document in entries:
        key = (row, offset, block.number)
        if key not in pictures:
            pictures[key] = len(pixels)
            pixels.append(block.pixels)
            moments += [] if block.moments is None else [block.moments]
            keys.append((document, block.number))
        picture.append(pictures[key])
    return ImageSlots(
        pixels=torch.stack(pixels),
        document=torch.tensor([document for document, _ in keys]),
        number=torch.tensor([number for _, number in keys]),
        picture=torch.tensor(picture),
        row=torch.tensor([row for _, row, _, _ in entries]),
        start=torch.tensor([block.start + offset for block, _, offset, _ in entries]),
        noised=torch.tensor([block.noised for block, _, _, _ in entries]),
        draw=torch.tensor([block.draw for block, _, _, _ in entries]),
        noise_limit=torch.tensor([block.noise_limit for block, _, _, _ in entries]),
        grid=entries[0][0].grid,
        moments=torch.stack(moments) if moments else None,
    )
