"""How likely a model finds text: sums of log-likelihoods over labelled tokens, in packed rows.

Knows layouts and the network, nothing of where text comes from. Invariant: what a layout gets does not depend on what
it is packed with (up to the last bits of matrix products).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from monoformer.batch import IGNORED, Layout
from monoformer.model.attention import build_mask
from monoformer.packing import Row, collate, pack
from monoformer.pretrained import Pretrained

ROWS = 8
"""Packed rows in one pass."""
STEP = 128
"""Rows are as long as the context, or a multiple of this where little is read: a compiled mask sees few lengths."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of the labelled tokens of one layout."""

    nats: float
    """Minus the sum of their log-likelihoods."""
    tokens: int
    greedy: bool
    """Whether every one of them was the likeliest."""


@torch.no_grad()
def read_layouts(
    pretrained: Pretrained, layouts: Sequence[Layout], *, rows: int = ROWS, vocabulary: int = 0
) -> list[Reading]:
    """Readings of layouts of text, in order, `rows` packed rows a pass.

    With `vocabulary` the softmax is over the first rows of the vocabulary only: a language model has not learned
    anything of the image tokens that were added to it. No layout may be longer than the context.
    """
    model, tokenizer = pretrained.model, pretrained.tokenizer
    for number, layout in enumerate(layouts):
        layout.document = number
    total = sum(len(layout) for layout in layouts)
    length = min(model.config.context, STEP * math.ceil(total / STEP))
    packed: list[Row] = pack(layouts, length=length)
    found: dict[int, Reading] = {}
    for first in range(0, len(packed), rows):
        chosen = packed[first : first + rows]
        batch = collate(chosen, length=length, pad=tokenizer.pad).to(model.tokens.weight.device)
        hidden = model(batch.ids, batch.positions, build_mask(batch))
        labelled = batch.labels != IGNORED
        logits = model.text(hidden[labelled]).float()
        if vocabulary:
            logits = logits[:, :vocabulary]
        labels = batch.labels[labelled]
        nats = F.cross_entropy(logits, labels, reduction="none").cpu().double()
        likeliest = (logits.argmax(-1) == labels).cpu()
        row, column = (index.cpu() for index in torch.nonzero(labelled, as_tuple=True))
        within = batch.document.cpu()[row, column]
        for r, layouts_in_row in enumerate(chosen):
            for number, layout in enumerate(layouts_in_row):
                own = (row == r) & (within == number)
                found[layout.document] = Reading(float(nats[own].sum()), int(own.sum()), bool(likeliest[own].all()))
    return [found[number] for number in range(len(layouts))]


def continuation(context: Sequence[int], following: Sequence[int], *, length: int) -> Layout:
    """A layout that asks how `following` goes on from `context` (both token ids, the first of them bos).

    Where both together are too long, the beginning of the context is left out; the last token is predicted but not
    read. Raises ValueError when there is nothing to predict, or too much to be read at all.
    """
    if not 1 <= len(following) <= length:
        raise ValueError(
            f"a continuation has {len(following)} tokens, but must have at least one and the model reads {length} at "
            f"most; change it"
        )
    ids = [*context, *following][-(length + 1) :]
    layout = Layout()
    known = max(0, len(ids) - len(following))
    layout.add_text(ids[:known])
    layout.add_text(ids[known:-1], labelled=True)
    layout.labels[-1] = ids[-1]
    return layout


def windows(ids: Sequence[int], *, length: int, stride: int) -> Iterator[Layout]:
    """A text as windows of at most `length` tokens, each `stride` after the one before, every token asked for once.

    In all but the first window the first `length - stride` tokens are only context.
    """
    start, asked = 0, 1
    while asked < len(ids):
        layout = Layout()
        layout.add_text(ids[start:asked])
        layout.add_text(ids[asked : start + length], labelled=True)
        yield layout
        asked = start + len(layout)
        start += stride
