"""Frechet distance, Inception Score, precision and recall against other ways to compute them, and on known cases."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg, special
from scipy.spatial.distance import cdist

from monoformer.evaluate.diversity import inception_score, precision_recall
from monoformer.evaluate.frechet import Statistics, distance, frechet_distance, statistics
from monoformer.randomness import generator

Doubles = NDArray[np.float64]


def features(count: int, width: int, *key: int) -> torch.Tensor:
    """Correlated features away from 0."""
    random = generator("frechet", *key)
    mixed = torch.randn(width, width, generator=random)
    return torch.randn(count, width, generator=random) @ mixed + 3 * torch.rand(width, generator=random)


def by_root(first: torch.Tensor, second: torch.Tensor) -> float:
    """By SciPy's matrix root of the product."""
    one, two = first.double().numpy(), second.double().numpy()
    c_1, c_2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = linalg.sqrtm(c_1 @ c_2)
    return float(((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(c_1 + c_2 - 2 * root.real))


def by_singular_values(first: torch.Tensor, second: torch.Tensor) -> float:
    """Without covariances: trace (C_1 C_2)^(1/2) is the sum of the singular values of X_1 X_2^T, centred and scaled."""
    one, two = first.double().numpy(), second.double().numpy()
    x_1, x_2 = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (one, two))
    both = linalg.svdvals(x_1 @ x_2.T).sum()
    return float(((one.mean(0) - two.mean(0)) ** 2).sum() + (x_1**2).sum() + (x_2**2).sum() - 2 * both)


@pytest.mark.parametrize(("counts", "width"), [((200, 300), 16), ((1000, 500), 64), ((40, 5000), 24)])
def test_equal_to_scipy(counts: tuple[int, int], width: int) -> None:
    first, second = features(counts[0], width, 1), features(counts[1], width, 2)
    found = frechet_distance(first, second)
    assert found == pytest.approx(by_root(first, second), rel=1e-9)
    assert found == pytest.approx(by_singular_values(first, second), rel=1e-9)


def test_fewer_pictures_than_features() -> None:
    first, second = features(20, 64, 1), features(30, 64, 2)  # singular covariances, whose root SciPy takes inexactly
    assert frechet_distance(first, second) == pytest.approx(by_singular_values(first, second), rel=1e-6)
    assert frechet_distance(first, second) == pytest.approx(by_root(first, second), rel=1e-4)


def test_known_distances() -> None:
    one = features(500, 8, 1)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(8 * 4)
    spread = (one - one.mean(0)) * 3 + one.mean(0)  # trace(C + 9 C - 2 * 3 C)
    assert frechet_distance(one, spread) == pytest.approx(4 * float(torch.cov(one.double().T).trace()), rel=1e-5)


def test_normals_whose_distance_is_known() -> None:
    deviations = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]]).double()
    means = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, -2.0]]).double()
    exact = 9 + 16 + 1 + 0 + 2.5**2  # squares of the differences of means and of deviations
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator("turn")).double())[0]  # turning both changes nothing
    one, two = (Statistics(turn @ m, turn @ torch.diag(d**2) @ turn.T) for m, d in zip(means, deviations, strict=True))
    assert distance(one, two) == pytest.approx(exact)
    drawn = [
        means[i] + deviations[i] * torch.randn(100_000, 3, generator=generator("normal", i)).double() for i in (0, 1)
    ]
    assert frechet_distance(*drawn) == pytest.approx(exact, rel=0.01)


def test_what_has_no_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two pictures"):
        frechet_distance(features(1, 4, 1), features(9, 4, 2))
    with pytest.raises(ValueError, match="take both from one extractor"):
        distance(statistics(features(9, 4, 1)), statistics(features(9, 5, 1)))


def test_inception_score_is_that_of_its_definition() -> None:
    logits = 2 * features(103, 7, 3)
    scores = []
    for i in range(10):
        p: Doubles = special.softmax(logits.double().numpy()[i * 103 // 10 : (i + 1) * 103 // 10], axis=1)
        scores.append(np.exp(special.rel_entr(p, p.mean(0)).sum(1).mean()))
    assert inception_score(logits, splits=10) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    certain = torch.eye(5).repeat(20, 1) * 100  # five classes, each picture sure of its own, all alike frequent
    assert inception_score(certain, splits=4)[0] == pytest.approx(5)
    assert inception_score(torch.zeros(50, 5))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot be shared out to 10 splits"):
        inception_score(torch.zeros(9, 5))


@pytest.mark.parametrize("block", [7, 4096])
def test_precision_and_recall_are_those_of_their_definition(block: int) -> None:
    real, drawn = features(60, 5, 4), features(45, 5, 6)
    points = {"real": real.double().numpy(), "drawn": drawn.double().numpy()}

    def inside(some: str, centres: str) -> int:
        own = np.sort(cdist(points[centres], points[centres]))[:, 3]
        return int((cdist(points[some], points[centres]) <= own).any(1).sum())

    expected = (inside("drawn", "real"), inside("real", "drawn"))
    assert precision_recall(real, drawn, block=block) == expected
    assert 0 < expected[0] < 45
    assert 0 < expected[1] < 60


def test_known_precision_and_recall() -> None:
    real = features(50, 4, 5)
    assert precision_recall(real, real) == (50, 50)
    assert precision_recall(real, real + 1000) == (0, 0)
    assert precision_recall(real, real[:1].repeat(50, 1)) == (50, 1), "one real picture learned by heart"
    with pytest.raises(ValueError, match="need more pictures"):
        precision_recall(real, real[:3])


def test_equal_to_torch_fidelity() -> None:
    try:
        from torch_fidelity.metric_fid import fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
    one, two = features(300, 16, 1), features(200, 16, 2)
    sides = [{"mu": x.double().numpy().mean(0), "sigma": np.cov(x.double().numpy(), rowvar=False)} for x in (one, two)]
    theirs = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(one, two) == pytest.approx(theirs, rel=1e-6)
    score = isc_features_to_metric(one, splits=10, shuffle=False)
    assert inception_score(one) == pytest.approx(tuple(score.values()), rel=1e-6)
    options = {"prc_neighborhood": 3, "prc_batch_size": 64, "save_cpu_ram": True, "verbose": False}
    shares = prc_features_to_metric(two, one, **options)  # the drawn ones first
    good, covered = precision_recall(one, two)
    assert (good / 200, covered / 300) == pytest.approx((shares["precision"], shares["recall"]), abs=1e-6)
