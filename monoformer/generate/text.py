"""Logits to tokens: bias, penalty, temperature, top-k, top-p, min-p, each session with its own generator.

Knows nothing of sessions or caches. Invariant: a token depends on its row's logits, settings and generator alone. Rows
that take the likeliest token wait for the device once together, never one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monoformer.config.generate import GenerateConfig


@dataclass(frozen=True)
class Score:
    """What the model itself thought of a token, before any setting: natural logarithms of probabilities."""

    token: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place and their log-probabilities, the likeliest first."""


def score_tokens(logits: Tensor, tokens: Sequence[int], *, top: int = 0) -> list[Score]:
    """The log-probability of each row's token under logits (N, V), and of the row's `top` likeliest ones."""
    logs = logits.float().log_softmax(dim=-1)
    chosen = torch.tensor(list(tokens), device=logits.device)
    own = logs.gather(1, chosen[:, None])[:, 0].tolist()
    values, index = logs.topk(min(top, logs.shape[1]), dim=1)
    rows = zip(tokens, own, index.tolist(), values.tolist(), strict=True)
    return [Score(token, log, tuple(zip(best, likely, strict=True))) for token, log, best, likely in rows]


def adjust(logits: Tensor, settings: GenerateConfig, *, seen: Tensor | None) -> Tensor:
    """Logits (V,) after the penalty on tokens `seen` (bool (V,); None: no penalty) and the bias; never waits."""
    if seen is not None:
        penalty = settings.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if settings.logit_bias:
        tokens, bias = zip(*settings.logit_bias, strict=True)
        index = torch.tensor(tokens, device=logits.device)
        logits = logits.index_add(0, index, torch.tensor(bias, dtype=logits.dtype, device=logits.device))
    return logits


def choose_tokens(
    logits: Tensor, settings: Sequence[GenerateConfig], generators: Sequence[torch.Generator]
) -> list[int]:
    """The next token of every row of (B, V); -1 where the model's numbers are broken (NaN, or nothing possible)."""
    best, token = logits.max(dim=-1)  # NaN is larger than any number
    found: list[int] = torch.where(best.isfinite(), token, -1).tolist()
    warm = [row for row, own in enumerate(settings) if own.temperature > 0 and found[row] >= 0]
    if warm:
        scores = logits[warm].cpu().double()
        for row, own in zip(warm, scores, strict=True):
            found[row] = choose_token(own, settings[row], generators[row])
    return found


def choose_token(logits: Tensor, settings: GenerateConfig, generator: torch.Generator) -> int:
    """The next token from logits (V,); temperature 0 takes the likeliest."""
    if settings.temperature == 0:
        return int(logits.argmax())
    scores = logits.cpu().double()
    scores = (scores - scores.max()) / settings.temperature  # at most 0, however low the temperature
    if settings.top_k:
        lowest = scores.topk(min(settings.top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    probabilities = scores.softmax(dim=0)
    if settings.top_p < 1:
        probabilities = nucleus(probabilities, settings.top_p)
    if settings.min_p:
        probabilities = probabilities.masked_fill(probabilities < settings.min_p * probabilities.max(), 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens that together reach `top_p` (arXiv 1904.09751); the likeliest always stays."""
    ordered, index = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).index_copy(0, index, ordered)
