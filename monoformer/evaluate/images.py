"""Scores of drawn pictures: by the features of a named extractor, or by a classifier's verdict.

Knows the pipeline and the extractor, nothing of data sets. A Frechet distance is comparable only with distances on the
same features; only on Inception's is it called FID.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from monoformer.document import Document, Text
from monoformer.evaluate.diversity import inception_score, precision_recall
from monoformer.evaluate.extractors import Extractor
from monoformer.evaluate.frechet import Statistics, distance, frechet_distance, statistics
from monoformer.evaluate.journal import Array, Journal
from monoformer.evaluate.references import Pictures, load_reference
from monoformer.evaluate.score import Score, share


class Drawer(Protocol):
    """What draws: a `Pipeline`, or a peer."""

    def generate(self, documents: Sequence[Document], *, want: Literal["image"], seed: Sequence[int]) -> list[Document]:
        """A document with one picture for each prompt."""
        ...


class Judge(Protocol):
    """A classifier of pictures."""

    classes: tuple[str, ...]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W) -> features (N, F), logits (N, classes)."""
        ...


def draw_all(
    pipeline: Drawer, prompts: Sequence[Document], *, seed: int, chunk: int, journal: Journal
) -> Iterator[Array]:
    """Pictures of the prompts, uint8 (n, H, W, 3) a chunk; prompt i has seed `seed + i`."""

    def drawn(first: int) -> Array:
        chosen = prompts[first : first + chunk]
        seeds = list(range(seed + first, seed + first + len(chosen)))
        made = pipeline.generate(chosen, want="image", seed=seeds)
        return np.stack([document.images[0].pixels.permute(1, 2, 0).numpy() for document in made])

    for first in range(0, len(prompts), chunk):
        count = min(chunk, len(prompts) - first)
        yield journal.keep("drawn", f"{first:08d}", count=count, compute=partial(drawn, first))


@dataclass(frozen=True, kw_only=True)
class ImageEvaluator:
    """Draws a picture for each prompt and compares all with real ones, by an extractor's features."""

    pipeline: Drawer
    extractor: Extractor
    prompts: Sequence[Document]
    drawn: Pictures | None = None
    """Pictures that were drawn before; then there are no prompts."""
    real: Pictures | Statistics
    cache: Path
    """Folder that keeps the features of real pictures."""
    seed: int = 0
    neighbours: int = 3
    splits: int = 10
    chunk: int = 64
    """Pictures in one call of the pipeline."""
    samples: Path | None = None
    """Where the drawn pictures go, in ADM's form."""
    journal: Journal = field(default_factory=Journal)

    @property
    def total(self) -> int:
        """Pictures that are drawn and read."""
        return 2 * len(self.prompts) if self.drawn is None else self.drawn.count

    def run(self) -> Iterator[tuple[str, float]]:
        """Frechet distance (FID on Inception), Inception Score with its deviation over splits, precision, recall."""
        name, drawn = self.extractor.name, self._drawn()
        features, logits = self._features(drawn)
        reference = load_reference(self.real, self.extractor, cache=self.cache)
        kind = "fid" if self.extractor.is_inception else "frechet_distance"
        count = len(features)
        yield f"{name}_{kind}", Score(distance(reference.statistics, statistics(features)), count=count)
        if logits is not None:
            score, deviation = inception_score(logits, splits=self.splits)
            kind = "score" if self.extractor.is_inception else "class_score"
            yield f"{name}_{kind}", Score(score, count=count)
            yield f"{name}_{kind}_deviation", Score(deviation, count=count)
        if reference.features is not None:
            good, covered = precision_recall(reference.features, features, neighbours=self.neighbours)
            yield f"{name}_precision", share(good, count)
            yield f"{name}_recall", share(covered, len(reference.features))

    def _drawn(self) -> Pictures:
        if self.drawn is not None:
            return self.drawn
        chunks = draw_all(self.pipeline, self.prompts, seed=self.seed, chunk=self.chunk, journal=self.journal)
        pixels = np.concatenate(list(chunks))
        if self.samples is not None:
            np.savez(self.samples, arr_0=pixels)
        return Pictures.listed(torch.from_numpy(pixels).permute(0, 3, 1, 2))  # type: ignore[arg-type]

    def _features(self, drawn: Pictures) -> tuple[Tensor, Tensor | None]:
        found: list[tuple[Tensor, Tensor | None]] = []
        for pixels in drawn.batches():
            found.append(self.extractor.features(pixels))
            self.journal.watch(len(pixels))
        logits = [part for _, part in found if part is not None]
        return torch.cat([features for features, _ in found]), torch.cat(logits) if logits else None


@dataclass(frozen=True, kw_only=True)
class ClassEvaluator:
    """Draws `count` pictures, the judge's classes in turn, and compares them with real ones."""

    pipeline: Drawer
    judge: Judge
    real: Sequence[Tensor]
    """uint8 (3, H, W) each."""
    prompt: str
    """{} is the class's name."""
    count: int = 1000
    seed: int = 0
    chunk: int = 64
    """Pictures in one call of the pipeline, and of the judge."""
    journal: Journal = field(default_factory=Journal)

    @property
    def total(self) -> int:
        """Pictures that are drawn."""
        return self.count

    def run(self) -> Iterator[tuple[str, float]]:
        """Share of pictures classified as asked; Frechet distance to the real pictures."""
        wanted = [number % len(self.judge.classes) for number in range(self.count)]
        prompts = [Document((Text(self.prompt.replace("{}", self.judge.classes[c]), "user"),)) for c in wanted]
        chunks = draw_all(self.pipeline, prompts, seed=self.seed, chunk=self.chunk, journal=self.journal)
        drawn = [pixels for chunk in chunks for pixels in torch.from_numpy(chunk).permute(0, 3, 1, 2)]
        features, logits = self._judge(drawn)
        yield "class_right", share(int((logits.argmax(1) == torch.tensor(wanted)).sum()), self.count)
        yield "frechet_distance", frechet_distance(features, self._judge(self.real)[0])

    @torch.no_grad()
    def _judge(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        chunks = [self.judge(torch.stack(list(pictures[i : i + 256]))) for i in range(0, len(pictures), 256)]
        return torch.cat([features for features, _ in chunks]), torch.cat([logits for _, logits in chunks])
