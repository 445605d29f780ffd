"""Frechet distance between normal distributions fitted to features.

Knows nothing of pictures or extractors. All arithmetic is in fp64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean (F,) and covariance (F, F) of features, fp64."""

    mean: Tensor
    covariance: Tensor


def statistics(features: Tensor) -> Statistics:
    """Of features (N, F); the covariance divides by N - 1. ValueError for fewer than two pictures."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two pictures a side, but there are {len(features)}")
    x = features.double()
    width = x.shape[1]
    return Statistics(x.mean(0), torch.cov(x.T).reshape(width, width))


def distance(first: Statistics, second: Statistics) -> float:
    """Frechet distance (squared, as is usual) between two normal distributions.

    |m_1 - m_2|^2 + trace(C_1 + C_2 - 2 (C_1 C_2)^(1/2)); the last trace is that of (C_1^(1/2) C_2 C_1^(1/2))^(1/2),
    whose eigenvalues are real and not negative: no complex root has to be cut off (arXiv 1706.08500, section 2).
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features of {len(first.mean)} and of {len(second.mean)} numbers cannot be compared; "
            f"take both from one extractor"
        )
    shift = first.mean - second.mean
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    return float(shift @ shift + first.covariance.trace() + second.covariance.trace() - 2 * both)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The distance between features (N, F) and (M, F)."""
    return distance(statistics(first), statistics(second))
