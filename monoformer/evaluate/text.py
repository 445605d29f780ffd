"""Perplexity of text that the model never trained on.

Knows the network and the sequencer, nothing of where text comes from. Invariant: a document's loss does not depend on
what it is packed with (up to the last bits of matrix products).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from monoformer.document import Document, Text
from monoformer.model.attention import build_mask
from monoformer.packing import Row, collate, pack
from monoformer.pretrained import Pretrained
from monoformer.train.loss import sum_text_loss

ROWS = 8
"""Packed rows in one pass."""


@dataclass(frozen=True, kw_only=True)
class TextEvaluator:
    """Reads `documents` of text alone, each as bos, text, eos.

    A token's perplexity depends on the tokenizer, a byte's does not; both share out the same loss, eos included.
    """

    pretrained: Pretrained
    documents: Sequence[Document]
    name: str = "text"

    def run(self) -> Iterator[tuple[str, float]]:
        """exp(loss / tokens) and exp(loss / bytes of UTF-8)."""
        nats, tokens = self.loss()
        size = sum(len(s.text.encode()) for d in self.documents for s in d.segments if isinstance(s, Text))
        yield f"{self.name}_perplexity", math.exp(nats / max(tokens, 1))
        yield f"{self.name}_byte_perplexity", math.exp(nats / max(size, 1))

    @torch.no_grad()
    def loss(self) -> tuple[float, int]:
        """Sum of the cross-entropy in nats, and the number of tokens that it was taken over."""
        model, tokenizer = self.pretrained.model, self.pretrained.tokenizer
        sequencer, length = self.pretrained.sequencer(), model.config.context
        layouts = [sequencer.document(document, number) for number, document in enumerate(self.documents)]
        for layout in layouts:
            if len(layout) > length:
                raise ValueError(
                    f"a document of the {self.name} scores has {len(layout)} tokens, but the model reads {length} at "
                    f"most; cut the text shorter (data.characters)"
                )
        rows: list[Row] = pack(layouts, length=length)
        nats, tokens = 0.0, 0
        for first in range(0, len(rows), ROWS):
            batch = collate(rows[first : first + ROWS], length=length, pad=tokenizer.pad).to(model.tokens.weight.device)
            hidden = model(batch.ids, batch.positions, build_mask(batch))
            nats += sum_text_loss(model, hidden, batch).item()
            tokens += batch.labelled
        return nats, tokens
