"""The Frechet distance against SciPy's matrix root of the product, which is another way to compute it."""

import numpy as np
import pytest
import torch
from scipy import linalg

from monoformer.evaluate.frechet import frechet_distance
from monoformer.randomness import generator


def features(count: int, width: int, *key: int) -> torch.Tensor:
    """Correlated features away from 0."""
    random = generator("frechet", *key)
    mixed = torch.randn(width, width, generator=random)
    return torch.randn(count, width, generator=random) @ mixed + 3 * torch.rand(width, generator=random)


def by_scipy(first: torch.Tensor, second: torch.Tensor) -> float:
    one, two = first.double().numpy(), second.double().numpy()
    c_1, c_2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = linalg.sqrtm(c_1 @ c_2)
    return float(((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(c_1 + c_2 - 2 * root.real))


@pytest.mark.parametrize(("counts", "width"), [((200, 300), 16), ((1000, 500), 64), ((40, 5000), 24)])
def test_equal_to_scipy(counts: tuple[int, int], width: int) -> None:
    first, second = features(counts[0], width, 1), features(counts[1], width, 2)
    assert frechet_distance(first, second) == pytest.approx(by_scipy(first, second), rel=1e-9)


def test_fewer_pictures_than_features() -> None:
    first, second = features(20, 64, 1), features(20, 64, 2)  # singular covariances; SciPy's root of them is inexact
    assert frechet_distance(first, second) == pytest.approx(by_scipy(first, second), rel=1e-4)


def test_known_distances() -> None:
    one = features(500, 8, 1)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(8 * 4)
    spread = (one - one.mean(0)) * 3 + one.mean(0)  # trace(C + 9 C - 2 * 3 C)
    assert frechet_distance(one, spread) == pytest.approx(4 * float(torch.cov(one.double().T).trace()), rel=1e-5)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least two pictures"):
        frechet_distance(features(1, 4, 1), features(9, 4, 2))
