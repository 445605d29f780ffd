"""Pictures of scenes: anti-aliased, at any resolution.

Each shape is a signed distance (negative inside) to its outline; a pixel is covered by `clip(0.5 - distance in
pixels, 0, 1)`, and covered pixels mix the thing's colour with the background linearly in RGB. Knows nothing of words.
Invariant: a picture depends on the scene and the size alone.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monoformer.data.scenes.world import BACKGROUNDS, COLOURS, Scene

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


def distance(shape: str, x: Floats, y: Floats, radius: Floats | float) -> Floats:
    """Signed distance from points (x, y), relative to the centre of the box, to the shape of half-side `radius`."""
    result: Floats
    match shape:
        case "circle":
            result = np.hypot(x, y) - radius
        case "square":
            result = np.maximum(np.abs(x), np.abs(y)) - radius
        case "triangle":  # corners (0, -radius), (-radius, radius), (radius, radius)
            result = np.maximum(y - radius, (2 * np.abs(x) - y - radius) / math.sqrt(5))
        case "cross":  # arms 0.36 of the box wide
            across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
            result = np.maximum(across - 0.36 * radius, along - radius)
        case "ring":
            result = np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
        case _:
            raise ValueError(f"shape {shape!r} is not one of this world's")
    return result


def coverage(shape: str, x: Floats, y: Floats, radius: Floats | float, *, softness: float = 1) -> Floats:
    """Share of each pixel that the shape covers; all lengths in pixels, x and y from the centre of the box.

    The edge runs from covered to free within `softness` pixels.
    """
    cover: Floats = np.clip(0.5 - distance(shape, x, y, radius) / softness, 0, 1)
    return cover


def draw(scene: Scene, size: int) -> Tensor:
    """The picture, uint8 (3, size, size); ValueError below 16 pixels, where shapes cannot be told apart."""
    if size < 16:
        raise ValueError(f"scenes are drawn at 16 pixels or more, but size is {size}")
    canvas = np.empty((3, size, size), np.float32)
    canvas[:] = np.asarray(BACKGROUNDS[scene.background], np.float32)[:, None, None]
    for thing in scene.things:
        reach = thing.radius * size + 1
        left, right = max(0, math.floor(thing.x * size - reach)), min(size, math.ceil(thing.x * size + reach))
        top, bottom = max(0, math.floor(thing.y * size - reach)), min(size, math.ceil(thing.y * size + reach))
        x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - thing.x * size)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - thing.y * size)
        cover = coverage(thing.shape, x, y, thing.radius * size)
        window = canvas[:, top:bottom, left:right]
        window += cover * (np.asarray(COLOURS[thing.colour], np.float32)[:, None, None] - window)
    return torch.from_numpy((canvas + 0.5).astype(np.uint8))
