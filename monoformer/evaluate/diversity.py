"""How good and how varied pictures are, from their features and class probabilities.

Knows nothing of pictures or extractors. Invariant: the size of a block changes no result but in the last bits.
"""

import torch
from torch import Tensor

BLOCK = 4096
"""Rows of features whose distances to all others are in memory at once."""


def inception_score(logits: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """Mean and deviation over `splits` of exp(mean KL(p(class | picture) || p(class))) (arXiv 1606.03498, section 4).

    `logits` (N, classes) are split in their order; the deviation divides by the number of splits, as is usual.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} pictures cannot be shared out to {splits} splits; give fewer splits")
    scores, count = [], len(logits)
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits].double()
        log_p = part.log_softmax(-1)
        log_marginal = torch.logsumexp(log_p, 0) - torch.tensor(len(part)).double().log()
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(-1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


def precision_recall(real: Tensor, drawn: Tensor, *, neighbours: int = 3, block: int = BLOCK) -> tuple[int, int]:
    """How many drawn features (M, F) lie in the real ones' manifold, and how many real ones (N, F) in the drawn ones'.

    The manifold is the union of balls around every point that reach to its k-th neighbour (arXiv 1904.06991). Divided
    by M and N they are precision and recall. ValueError for no more points than neighbours.
    """
    if min(len(real), len(drawn)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more pictures than that on both sides, but there "
            f"are {len(real)} real and {len(drawn)} drawn"
        )
    return _inside(drawn, real, neighbours, block), _inside(real, drawn, neighbours, block)


def _inside(points: Tensor, centres: Tensor, neighbours: int, block: int) -> int:
    """How many of the points lie in a ball of some centre."""
    radii = torch.cat(
        [
            # a centre's nearest neighbour is itself, at distance 0
            _squares(chosen, centres).topk(neighbours + 1, largest=False).values[:, -1]
            for chosen in centres.split(block)
        ]
    )
    return sum(int((_squares(chosen, centres) <= radii).any(1).sum()) for chosen in points.split(block))


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (N, M) of (N, F) and (M, F), fp64: the product's rounding must not exceed the distances."""
    one, two = first.double(), second.double()
    return (one.square().sum(1)[:, None] + two.square().sum(1) - 2 * one @ two.T).clamp(min=0)
