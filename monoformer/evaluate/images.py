"""Scores of drawn pictures by a classifier: how many are what was asked, and how far their features lie from real ones.

Knows the pipeline and the judge, nothing of data sets. The distance is on the judge's own features and comparable only
with distances on the same ones; it is not FID, whose features are Inception's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from monoformer.document import Image
from monoformer.pipeline import Pipeline


class Judge(Protocol):
    """A classifier of pictures."""

    classes: tuple[str, ...]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W) -> features (N, F), logits (N, classes)."""
        ...


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance (squared, as is usual) between normals fitted to features (N, F) and (M, F), in fp64.

    |m_1 - m_2|^2 + trace(C_1 + C_2 - 2 (C_1 C_2)^(1/2)); the last trace is that of (C_1^(1/2) C_2 C_1^(1/2))^(1/2),
    whose eigenvalues are real and not negative: no complex root has to be cut off (arXiv 1706.08500, section 2).
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a covariance needs at least two pictures a side, but there are {len(first)}, {len(second)}")
    one, two = first.double(), second.double()
    shift = one.mean(0) - two.mean(0)
    covariances = [torch.cov(features.T).reshape(features.shape[1], -1) for features in (one, two)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    return float(shift @ shift + covariances[0].trace() + covariances[1].trace() - 2 * both)


@dataclass(frozen=True, kw_only=True)
class ClassEvaluator:
    """Draws `count` pictures, the judge's classes in turn, and compares them with real ones."""

    pipeline: Pipeline
    judge: Judge
    real: Sequence[Tensor]
    """uint8 (3, H, W) each."""
    prompt: str
    """{} is the class's name."""
    count: int = 1000
    seed: int = 0
    chunk: int = 64
    """Pictures in one call of the pipeline, and of the judge."""

    def run(self) -> Iterator[tuple[str, float]]:
        """Share of pictures classified as asked; Frechet distance to the real pictures."""
        wanted = [number % len(self.judge.classes) for number in range(self.count)]
        drawn: list[Tensor] = []
        for first in range(0, self.count, self.chunk):
            prompts = [self.prompt.replace("{}", self.judge.classes[c]) for c in wanted[first : first + self.chunk]]
            pictures = self.pipeline.generate_images(prompts, seed=self.seed + first)
            drawn += [Image.from_pil(picture).pixels for picture in pictures]
        features, logits = self._judge(drawn)
        yield "class_right", float((logits.argmax(1) == torch.tensor(wanted)).double().mean())
        yield "frechet_distance", frechet_distance(features, self._judge(self.real)[0])

    @torch.no_grad()
    def _judge(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        chunks = [self.judge(torch.stack(list(pictures[i : i + 256]))) for i in range(0, len(pictures), 256)]
        return torch.cat([features for features, _ in chunks]), torch.cat([logits for _, logits in chunks])
