"""Exact scores on drawn scenes: what was asked, against what the parser sees.

Knows the pipeline and the scenes, nothing of training. Invariant: items come from the held-out split and from seeds of
their own, so the same command gives the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, assert_never

import torch
from PIL import Image as PILImage

from monoformer.config.data import ScenesData
from monoformer.config.evaluate import SceneTask
from monoformer.data.scenes import Scenes, agreement, answer, caption_is_exact, draw, edit_is_exact, matches, parse
from monoformer.document import Image
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.score import Score, ratio, share


class Model(Protocol):
    """What is scored: a `Pipeline`, or whatever else draws and writes as it does."""

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        """A picture for each prompt."""
        ...

    def caption(self, pictures: Sequence[PILImage.Image], *, temperature: float, seed: Sequence[int]) -> list[str]:
        """A description of each picture."""
        ...

    def answer(
        self, pictures: Sequence[PILImage.Image], questions: Sequence[str], *, temperature: float, seed: Sequence[int]
    ) -> list[str]:
        """An answer to the question about each picture."""
        ...

    def edit(
        self, pictures: Sequence[PILImage.Image], instructions: Sequence[str], *, seed: Sequence[int]
    ) -> list[PILImage.Image]:
        """Each picture, changed as its instruction says."""
        ...


@dataclass
class SceneEvaluator:
    """Draws, describes, edits and answers `count` held-out items each."""

    pipeline: Model
    data: ScenesData
    count: int = 256
    seed: int = 0
    chunk: int = 64
    """Items in one call of the pipeline."""
    tasks: Sequence[SceneTask] = ("draw", "describe", "edit", "answer")
    journal: Journal = field(default_factory=Journal)
    scenes: Scenes | None = None
    """Where items come from, if not from the held-out split of `data`."""
    prefix: str = ""
    """What the figures' names begin with."""

    def __post_init__(self) -> None:
        self._scenes = self.scenes or Scenes(self.data, split="test", seed=self.seed)

    @property
    def total(self) -> int:
        """Items of all tasks."""
        return self.count * len(self.tasks)

    def run(self) -> Iterator[tuple[str, float]]:
        """Shares in [0, 1], by name."""
        for task in self.tasks:
            for name, value in self._scores(task):
                yield f"{self.prefix}{name}", value

    def _scores(self, task: SceneTask) -> Iterator[tuple[str, Score]]:
        match task:
            case "draw":
                found = self._each("draw", self._draw)
                things = [things for _, _, _, things in found]
                yield "draw_exact", _share(exact for exact, *_ in found)
                yield "draw_colour", ratio([colour for _, colour, _, _ in found], things).within(0, 1)
                yield "draw_colour_and_shape", ratio([both for _, _, both, _ in found], things).within(0, 1)
            case "describe":
                yield "describe_exact", _share(self._each("describe", self._describe))
            case "edit":
                yield "edit_exact", _share(self._each("edit", self._edit))
            case "answer":
                yield "answer_exact", _share(self._each("answer", self._answer))
            case _:
                assert_never(task)

    def _each(self, task: SceneTask, compute: Callable[[list[int]], list[Any]]) -> list[Any]:
        """What `compute` says of every item, chunk by chunk."""
        found: list[Any] = []
        for first in range(0, self.count, self.chunk):
            indices = list(range(first, min(first + self.chunk, self.count)))
            found += self.journal.remember(
                f"{self.prefix}{task}", first, count=len(indices), compute=partial(compute, indices)
            )
        return found

    def _draw(self, indices: list[int]) -> list[tuple[bool, float, float, int]]:
        """Caption -> picture: everything right; of the asked things those of the right colour (and shape); how many."""
        asked = [self._scenes.drawing(i) for i in indices]
        pictures = self.pipeline.generate_images([a.caption for a in asked], seed=indices)
        found = []
        for example, picture in zip(asked, pictures, strict=True):
            pixels = Image.from_pil(picture).pixels
            strict, lenient = parse(pixels), parse(pixels, strict=False)
            exact = strict is not None and matches(example.description, strict)
            right, things = agreement(example.description, lenient), len(example.description.things)
            found.append((exact, right.colour * things, right.colour_and_shape * things, things))
        return found

    def _describe(self, indices: list[int]) -> list[bool]:
        """Picture -> caption: everything said, and all of it true."""
        shown = [self._scenes.describing(i) for i in indices]
        pictures = [to_picture(draw(example.scene, self.data.size)) for example in shown]
        captions = self.pipeline.caption(pictures, temperature=0.0, seed=indices)
        return [caption_is_exact(c, example.scene) for c, example in zip(captions, shown, strict=True)]

    def _edit(self, indices: list[int]) -> list[bool]:
        """Picture + instruction -> picture: just what was said, everything else unmoved."""
        asked = [self._scenes.edit(i) for i in indices]
        pictures = [to_picture(draw(example.before, self.data.size)) for example in asked]
        edited = self.pipeline.edit(pictures, [example.text for example in asked], seed=indices)
        seen = [parse(Image.from_pil(picture).pixels) for picture in edited]
        return [
            after is not None and edit_is_exact(example.before, example.instruction, after)
            for example, after in zip(asked, seen, strict=True)
        ]

    def _answer(self, indices: list[int]) -> list[bool]:
        """Picture + question -> answer."""
        asked = [self._scenes.question(i) for i in indices]
        pictures = [to_picture(draw(example.scene, self.data.size)) for example in asked]
        said = self.pipeline.answer(pictures, [e.question for e in asked], temperature=0.0, seed=indices)
        return [s == answer(e.question, e.scene) for s, e in zip(said, asked, strict=True)]


def to_picture(pixels: torch.Tensor) -> PILImage.Image:
    """uint8 (3, H, W) -> PIL."""
    return Image(pixels=pixels).to_pil()


def _share(right: Iterator[bool] | list[bool]) -> Score:
    answers = list(right)
    return share(sum(answers), len(answers))
