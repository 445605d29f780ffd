"""The exact parser: reads a scene back from the pixels of a picture, or says that it is none.

What counts, for a square picture of any size from 16 pixels:

1. Background: the median colour of the border, within `COLOUR_TOLERANCE` of one of the backgrounds.
2. Things: 4-connected groups of pixels that are more thing than background; groups smaller than `SPECK` are dust.
3. Colour of a thing: what most of its pixels are nearest to once the mix with the background is undone; the median
   of the quarter of its pixels that is farthest from the background must lie within `COLOUR_TOLERANCE` of it. A thing
   of fewer than `FEW` pixels, which is nearly all soft edge, may be mixed with the background: `PALE` must be thing.
4. Shape and size: those of the ideal drawing, laid at the thing's centre of mass, that overlaps best; the overlap (soft
   intersection over union of coverages) must reach `OVERLAP`. Where it is low, ideal drawings with an edge twice as
   soft are tried too.
5. The scene so read, drawn again, explains the picture: at most `UNEXPLAINED` of the pixels are `FAR` off.

Knows nothing of words. Invariant: no learned part, no randomness.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from monoformer.data.scenes.drawing import Floats, coverage, draw
from monoformer.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

Integers: TypeAlias = npt.NDArray[np.intp]

COLOUR_TOLERANCE: Final = 60.0
"""Euclidean RGB distance; 25 in each channel is 43."""
OVERLAP: Final = 0.72
"""Least soft intersection over union of a thing and its ideal drawing."""
CRISP: Final = 0.85
"""Below this overlap softer drawings are tried."""
SPECK: Final = 0.005
"""Share of the picture below which a group of pixels is dust; the smallest thing covers 0.024."""
FEW: Final = 60
"""Pixels; the small things at 32 x 32 have up to 50."""
PALE: Final = 0.6
"""Least share of the thing's own colour in a thing of few pixels."""
FAR: Final = 110.0
"""Euclidean RGB distance beyond which a pixel is not explained."""
UNEXPLAINED: Final = 0.02
"""Largest share of pixels that may stay unexplained."""
MOST: Final = 6
"""A picture with more things than this is not read."""

_BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)
_BACKGROUND_RGB: Final = np.array(list(BACKGROUNDS.values()), np.float32)
_COLOUR_NAMES: Final = tuple(COLOURS)
_COLOUR_RGB: Final = np.array(list(COLOURS.values()), np.float32)
_SIZE_NAMES: Final = tuple(SIZES)
_RADII: Final = np.array(list(SIZES.values()), np.float32)[:, None, None] / 2


def parse(pixels: Tensor, *, strict: bool = True) -> Scene | None:
    """The scene that a picture, uint8 (3, side, side), shows, or None.

    With `strict=False` groups of pixels that are no thing are passed over and the last rule is waived, so that what
    was drawn well in a partly broken picture can still be scored.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.shape[1] != pixels.shape[2] or pixels.shape[1] < 16:
        raise ValueError(f"a picture must be (3, side, side) with a side of 16 or more, but is {tuple(pixels.shape)}")
    picture = pixels.numpy().transpose(1, 2, 0).astype(np.float32)
    side = picture.shape[0]
    border = np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))
    ground = np.median(border, axis=0)
    background = _nearest(ground, _BACKGROUND_RGB)
    if background is None:
        return None
    colours, groups = _groups(picture, ground)
    if not 1 <= len(groups) <= MOST:
        return None
    seen = [_read_thing(picture, ground, colours, group) for group in groups]
    things = tuple(thing for thing in seen if thing is not None)
    scene = Scene(_BACKGROUND_NAMES[background], things)
    if not things or (strict and (len(things) < len(seen) or not _explains(scene, picture, side))):
        return None
    return scene


def _nearest(colour: Floats, palette: Floats) -> int | None:
    """The row of the palette nearest to the colour; None beyond the tolerance."""
    distances = np.linalg.norm(palette - colour, axis=1)
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= COLOUR_TOLERANCE else None


def _explains(scene: Scene, picture: Floats, side: int) -> bool:
    """Rule 5."""
    off = draw(scene, side).numpy().transpose(1, 2, 0) - picture
    return bool((np.einsum("yxc,yxc->yx", off, off) > FAR**2).mean() <= UNEXPLAINED)


def _groups(picture: Floats, ground: Floats) -> tuple[Integers, list[Integers]]:
    """Rule 2: the nearest colour of each pixel (-1: background), and the groups as flat pixel indices."""
    side = picture.shape[0]
    offset = (picture - ground).reshape(-1, 3)
    candidates = np.flatnonzero(np.einsum("pc,pc->p", offset, offset) > 40**2)
    colours = np.full(side * side, -1)
    if 0 < candidates.size < 0.8 * side * side:
        toward = _COLOUR_RGB - ground  # (8, 3): from the background to each colour
        length = (toward**2).sum(1)
        share = np.clip(offset[candidates] @ toward.T / length, 0, 1)  # (pixels, 8): how much of the pixel is the thing
        # |offset - share * toward|^2 without forming the vectors; the offset's own square is the same for all colours.
        error = share * (share * length - 2 * (offset[candidates] @ toward.T))
        best = error.argmin(1)
        is_thing = share[np.arange(len(best)), best] > 0.5
        colours[candidates[is_thing]] = best[is_thing]
    groups = _connected((colours >= 0).reshape(side, side))
    return colours, [group for group in groups if len(group) >= SPECK * side * side]


def _connected(mask: npt.NDArray[np.bool_]) -> list[Integers]:
    """4-connected groups of a mask as flat indices, by joining the runs of each row; none if it is mere noise."""
    side = mask.shape[0]
    padded = np.zeros((side, side + 1), np.int8)  # one empty column parts the rows
    padded[:, :side] = mask
    edges = np.diff(padded.ravel(), prepend=0)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if len(starts) > 8 * side:  # a scene has at most about 3 runs in a row
        return []
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    first = 0
    runs = list(zip(starts.tolist(), ends.tolist(), strict=True))
    for run, (start, end) in enumerate(runs):
        while runs[first][1] + side + 1 <= start:
            first += 1
        above = first
        while above < run and runs[above][0] + side + 1 < end:
            if runs[above][1] + side + 1 > start:
                parent[root(above)] = root(run)
            above += 1
    groups: dict[int, list[int]] = {}
    for run, (start, end) in enumerate(runs):
        row = start // (side + 1)
        groups.setdefault(root(run), []).extend(range(start - row, end - row))
    return [np.array(group) for group in groups.values()]


def _read_thing(picture: Floats, ground: Floats, colours: Integers, group: Integers) -> Thing | None:
    """Rules 3 and 4: the thing that a group of pixels shows, or None."""
    side = picture.shape[0]
    counts = np.bincount(colours[group], minlength=len(_COLOUR_NAMES))
    colour = int(counts.argmax())
    toward = _COLOUR_RGB[colour] - ground
    of_group = picture.reshape(-1, 3)[group[colours[group] == colour]]
    strength = (of_group - ground) @ toward
    measured = np.median(of_group[strength.argsort()[-max(1, len(of_group) // 4) :]], axis=0) - ground
    share = np.clip(measured @ toward / (toward @ toward), PALE if len(group) < FEW else 1, 1)
    if np.linalg.norm(measured - share * toward) > COLOUR_TOLERANCE:
        return None
    toward = measured / share
    cover, top, left = _cover(picture, ground, colours, group, toward)
    mass = float(cover.sum())
    x = (cover.sum(0) @ (np.arange(cover.shape[1]) + left + 0.5)) / mass
    y = (cover.sum(1) @ (np.arange(cover.shape[0]) + top + 0.5)) / mass
    centre = (x - left - 0.5, y - top - 0.5)
    best = max(_overlaps(cover, centre, mass, side))
    if best[0] < CRISP:
        best = max(best, *_overlaps(cover, centre, mass, side, softness=2))
    overlap, shape, size, lift = best
    if overlap < OVERLAP:
        return None
    return Thing(SHAPES[shape], _COLOUR_NAMES[colour], _SIZE_NAMES[size], float(x / side), float((y - lift) / side))


def _cover(
    picture: Floats, ground: Floats, colours: Integers, group: Integers, toward: Floats
) -> tuple[Floats, int, int]:
    """How much of each pixel the thing covers, in a window two pixels wider than the group; its top and left."""
    side = picture.shape[0]
    rows, columns = group // side, group % side
    top, bottom = max(0, int(rows.min()) - 2), min(side, int(rows.max()) + 3)
    left, right = max(0, int(columns.min()) - 2), min(side, int(columns.max()) + 3)
    inside = np.zeros((bottom - top + 2, right - left + 2), np.bool_)
    inside[rows - top + 1, columns - left + 1] = True
    near = inside.copy()  # the group and the pixels beside it, where its soft edge lies
    near[1:] |= inside[:-1]
    near[:-1] |= inside[1:]
    wide = near.copy()
    wide[:, 1:] |= near[:, :-1]
    wide[:, :-1] |= near[:, 1:]
    near, inside = wide[1:-1, 1:-1], inside[1:-1, 1:-1]
    is_other = (colours.reshape(side, side)[top:bottom, left:right] >= 0) & ~inside
    offset = picture[top:bottom, left:right] - ground
    share = np.clip(offset @ toward / (toward @ toward), 0, 1)
    error = offset - share[..., None] * toward
    is_strange = np.einsum("yxc,yxc->yx", error, error) > 75**2
    return np.where(near & ~is_other & ~is_strange, share, 0).astype(np.float32), top, left


def _overlaps(
    cover: Floats, centre: tuple[float, float], mass: float, side: int, *, softness: float = 1
) -> list[tuple[float, int, int, float]]:
    """For every shape and size: overlap with its ideal drawing of this centre of mass, indices, lift.

    The lift is how far the centre of mass lies below the centre of the box, in pixels; only the triangle has one.
    """
    columns = np.arange(cover.shape[1], dtype=np.float32)[None, None, :] - np.float32(centre[0])
    rows = np.arange(cover.shape[0], dtype=np.float32)[None, :, None] - np.float32(centre[1])
    radii = _RADII * side
    found = []
    for shape, name in enumerate(SHAPES):
        lift = radii / 3 if name == "triangle" else np.zeros_like(radii)
        ideal = coverage(name, columns, rows + lift, radii, softness=softness)
        common = np.minimum(ideal, cover).sum((1, 2))
        total = mass + ideal.sum((1, 2)) - common
        for size in range(len(radii)):
            found.append((float(common[size] / total[size]), shape, size, float(lift[size, 0, 0])))
    return found
