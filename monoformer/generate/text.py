"""Logits to a token: temperature, top-k, top-p, each session with its own generator.

Knows nothing of sessions or caches. Invariant: the token depends on the logits and the session's generator alone.
"""

import torch
from torch import Tensor

from monoformer.config.generate import GenerateConfig


def choose_token(logits: Tensor, settings: GenerateConfig, generator: torch.Generator) -> int:
    """The next token from logits (V,); temperature 0 takes the likeliest."""
    if settings.temperature == 0:
        return int(logits.argmax())
    scores = logits.double().cpu() / settings.temperature
    if settings.top_k:
        lowest = scores.topk(min(settings.top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    probabilities = scores.softmax(dim=0)
    if settings.top_p < 1:
        probabilities = nucleus(probabilities, settings.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens that together reach `top_p` (arXiv 1904.09751); the likeliest always stays."""
    ordered, index = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).index_copy(0, index, ordered)


class TextStream:
    """Tokens to text as they come: holds back what may still change, part of a character or of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = tuple(s for s in stop if s)
        self.tokens: list[int] = []
        self.sent = ""

    def push(self, text: str) -> tuple[str, bool]:
        """`text` is everything decoded so far; returns what is new and safe to show, and whether a stop string came."""
        found = [at for at in (text.find(s) for s in self.stop) if at >= 0]
        if found:
            final = text[: min(found)]
            return self._advance(final), True
        safe = text.rstrip("\ufffd")
        for s in self.stop:
            for length in range(min(len(s) - 1, len(safe)), 0, -1):
                if safe.endswith(s[:length]):
                    safe = safe[: len(safe) - length]
                    break
        return self._advance(safe), False

    def finish(self, text: str) -> str:
        """What was held back, now that nothing more comes."""
        return self._advance(text)

    def _advance(self, text: str) -> str:
        delta = text[len(self.sent) :]
        if delta:
            self.sent = text
        return delta
