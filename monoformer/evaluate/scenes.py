"""Exact scores on drawn scenes: what was asked, against what the parser sees.

Knows the pipeline and the scenes, nothing of training. Invariant: items come from the held-out split and from seeds of
their own, so the same command gives the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import torch
from PIL import Image as PILImage

from monoformer.config.data import ScenesData
from monoformer.config.evaluate import SceneTask
from monoformer.data.scenes import Scenes, agreement, answer, caption_is_exact, draw, edit_is_exact, matches, parse
from monoformer.document import Image
from monoformer.pipeline import Pipeline

Watch = Callable[[int], None]
"""watch(n): n more items are done."""


@dataclass
class SceneEvaluator:
    """Draws, describes, edits and answers `count` held-out items each."""

    pipeline: Pipeline
    data: ScenesData
    count: int = 256
    seed: int = 0
    chunk: int = 64
    """Items in one call of the pipeline."""
    watch: Watch = field(default=lambda n: None)
    tasks: Sequence[SceneTask] = ("draw", "describe", "edit", "answer")

    def __post_init__(self) -> None:
        self.scenes = Scenes(self.data, split="test", seed=self.seed)

    def run(self) -> Iterator[tuple[str, float]]:
        """Shares in [0, 1], by name."""
        for task in self.tasks:
            match task:
                case "draw":
                    yield from self.drawing()
                case "describe":
                    yield from self.describing()
                case "edit":
                    yield from self.editing()
                case "answer":
                    yield from self.answering()
                case _:
                    assert_never(task)

    def drawing(self) -> Iterator[tuple[str, float]]:
        """Caption -> picture: everything right; and of the asked objects, those with the right colour (and shape)."""
        exact, colour, both = [], [], []
        for indices in self._chunks():
            asked = [self.scenes.drawing(i) for i in indices]
            pictures = self.pipeline.generate_images([a.caption for a in asked], seed=indices)
            for example, picture in zip(asked, pictures, strict=True):
                pixels = Image.from_pil(picture).pixels
                strict, lenient = parse(pixels), parse(pixels, strict=False)
                exact.append(strict is not None and matches(example.description, strict))
                share = agreement(example.description, lenient)
                weight = len(example.description.things)
                colour += [share.colour] * weight
                both += [share.colour_and_shape] * weight
        yield "draw_exact", _mean(exact)
        yield "draw_colour", _mean(colour)
        yield "draw_colour_and_shape", _mean(both)

    def describing(self) -> Iterator[tuple[str, float]]:
        """Picture -> caption: everything said, and all of it true."""
        exact = []
        for indices in self._chunks():
            shown = [self.scenes.describing(i) for i in indices]
            pictures = [to_picture(draw(example.scene, self.data.size)) for example in shown]
            captions = self.pipeline.caption(pictures, temperature=0.0, seed=indices)
            exact += [caption_is_exact(c, example.scene) for c, example in zip(captions, shown, strict=True)]
        yield "describe_exact", _mean(exact)

    def editing(self) -> Iterator[tuple[str, float]]:
        """Picture + instruction -> picture: just what was said, everything else unmoved."""
        exact = []
        for indices in self._chunks():
            asked = [self.scenes.edit(i) for i in indices]
            pictures = [to_picture(draw(example.before, self.data.size)) for example in asked]
            edited = self.pipeline.edit(pictures, [example.text for example in asked], seed=indices)
            for example, picture in zip(asked, edited, strict=True):
                seen = parse(Image.from_pil(picture).pixels)
                exact.append(seen is not None and edit_is_exact(example.before, example.instruction, seen))
        yield "edit_exact", _mean(exact)

    def answering(self) -> Iterator[tuple[str, float]]:
        """Picture + question -> answer."""
        exact = []
        for indices in self._chunks():
            asked = [self.scenes.question(i) for i in indices]
            pictures = [to_picture(draw(example.scene, self.data.size)) for example in asked]
            said = self.pipeline.answer(pictures, [e.question for e in asked], temperature=0.0, seed=indices)
            exact += [s == answer(e.question, e.scene) for s, e in zip(said, asked, strict=True)]
        yield "answer_exact", _mean(exact)

    def _chunks(self) -> Iterator[list[int]]:
        for first in range(0, self.count, self.chunk):
            indices = list(range(first, min(first + self.chunk, self.count)))
            yield indices
            self.watch(len(indices))


def to_picture(pixels: torch.Tensor) -> PILImage.Image:
    """uint8 (3, H, W) -> PIL."""
    return Image(pixels=pixels).to_pil()


def _mean(values: list[float] | list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
