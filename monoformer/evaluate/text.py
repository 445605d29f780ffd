"""Perplexity of text that the model never trained on.

Knows documents and the sequencer, nothing of where text comes from. Invariant: every token counts once, and what a
document gets does not depend on what it is read with.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from monoformer.batch import Layout
from monoformer.document import Document, Text
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.likelihood import ROWS, read_layouts, windows
from monoformer.evaluate.score import ratio
from monoformer.pretrained import Pretrained

MOST = 700.0
"""Nats of which e to the power is still a number; texts without blanks have words as long as paragraphs."""


@dataclass(kw_only=True)
class TextEvaluator:
    """Reads `documents` of text alone, each as bos, text, eos; what is longer than the context in strided windows.

    A token's perplexity depends on the tokenizer, a byte's and a word's do not; all share out the same loss, eos
    included. Words are what stands between blanks.
    """

    pretrained: Pretrained
    documents: Sequence[Document]
    name: str = "text"
    stride: int = 0
    """Tokens between two windows of a long document; 0: half the context."""
    rows: int = ROWS
    """Packed rows in one pass."""
    chunk: int = 64
    """Windows between two entries of the journal."""
    vocabulary: int = 0
    """Rows of the vocabulary that can follow; 0: all."""
    journal: Journal = field(default_factory=Journal)

    def __post_init__(self) -> None:
        length = self.pretrained.model.config.context
        if self.stride >= length:
            raise ValueError(
                f"the {self.name} scores have a stride of {self.stride}, but the model reads {length} tokens; a window "
                f"must begin within the one before it, so give less"
            )

    @cached_property
    def windows(self) -> list[Layout]:
        """What is read, window by window."""
        length, sequencer = self.pretrained.model.config.context, self.pretrained.sequencer()
        stride = self.stride or max(length // 2, 1)
        laid_out = (sequencer.document(document) for document in self.documents)
        return [window for layout in laid_out for window in windows(layout.ids, length=length, stride=stride)]

    @property
    def total(self) -> int:
        """Windows that are read."""
        return len(self.windows)

    def run(self) -> Iterator[tuple[str, float]]:
        """exp(loss / tokens), exp(loss / bytes of UTF-8), exp(loss / words), and bits a byte; none beyond numbers."""
        nats, tokens = self.loss()
        texts = [s.text for d in self.documents for s in d.segments if isinstance(s, Text)]
        loss, count = ratio(nats, tokens), sum(tokens)
        a_byte = loss.scaled(count / max(sum(len(text.encode()) for text in texts), 1))
        a_word = loss.scaled(count / max(sum(len(text.split()) for text in texts), 1))
        for unit, nats_each in (("", loss), ("byte_", a_byte), ("word_", a_word)):
            if max(nats_each, nats_each.high or 0) < MOST:
                yield f"{self.name}_{unit}perplexity", nats_each.exp()
        yield f"{self.name}_bits_per_byte", a_byte.scaled(1 / math.log(2))

    def loss(self) -> tuple[list[float], list[int]]:
        """The sum of the cross-entropy in nats over each window's new tokens, and their number."""
        found: list[list[float]] = []
        for first in range(0, self.total, self.chunk):
            chosen = self.windows[first : first + self.chunk]
            found += self.journal.remember(self.name, first, count=len(chosen), compute=partial(self._read, chosen))
        return [nats for nats, _ in found], [int(tokens) for _, tokens in found]

    def _read(self, chosen: Sequence[Layout]) -> list[tuple[float, int]]:
        readings = read_layouts(self.pretrained, chosen, rows=self.rows, vocabulary=self.vocabulary)
        return [(reading.nats, reading.tokens) for reading in readings]
