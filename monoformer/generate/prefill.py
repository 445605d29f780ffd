"""What contexts still have to read, in pieces, so that a long prompt holds nobody up.

Knows nothing of sessions. Invariant: pieces end where images end, never inside one, and where they end depends on the
layout and the budget alone.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from monoformer.batch import Layout
from monoformer.generate.passes import Context
from monoformer.generate.slots import extent
from monoformer.generate.text import Score


@dataclass
class Reading:
    """A layout on its way into a context; drawings behind equal contexts share one."""

    context: Context
    layout: Layout
    done: int = 0
    """Tokens of the layout that are in the cache."""
    source: int | None = None
    """A slot whose beginning is copied as soon as it is there."""
    hidden: Tensor | None = None
    """State (D,) of the last token that was read."""
    top: int | None = None
    """Of how many likeliest tokens the prompt's log-probabilities are wanted; None: none are."""
    scores: list[Score] = field(default_factory=list)
    error: str | None = None
    """Why it cannot be read."""
    turn: int = 0
    """The step in which it was served last."""

    @property
    def is_done(self) -> bool:
        """Whether all of it is read."""
        return self.done == len(self.layout)


def plan(readings: Sequence[Reading], *, budget: int, time_token: bool) -> list[tuple[Reading, Layout]]:
    """Whose piece is read next: who waited longest first, as many as fit the budget in one padded pass."""
    chosen: list[tuple[Reading, Layout]] = []
    widest = 0
    for reading in sorted(readings, key=lambda r: r.turn):
        piece = cut(reading.layout, reading.done, most=budget, time_token=time_token)
        wider = max(widest, len(piece))
        if not chosen or (len(chosen) + 1) * wider <= budget:
            chosen.append((reading, piece))
            widest = wider
    return chosen


def cut(layout: Layout, first: int, *, most: int, time_token: bool) -> Layout:
    """At most `most` tokens of the layout from index `first` on; more where one image alone is longer."""
    if first == 0 and len(layout) <= most:
        return layout
    end = min(len(layout), first + most)
    for start, stop in (extent(block, time_token=time_token) for block in layout.blocks):
        if start < end < stop:
            end = start if start > first else stop
    blocks = [replace(b, start=b.start - first) for b in layout.blocks if first <= b.start < end]
    following = layout.positions[end] if end < len(layout) else layout.next_position
    return Layout(
        document=layout.document,
        ids=layout.ids[first:end],
        positions=layout.positions[first:end],
        end=[e - first for e in layout.end[first:end]],
        private=layout.private[first:end],
        labels=layout.labels[first:end],
        blocks=blocks,
        next_position=following,
    )


def predicted_text(reading: Reading, count: int, *, given: Container[int]) -> tuple[Tensor, list[int]]:
    """Which of the next `count` tokens are followed by text (M,), and by which tokens; no model learns the `given`."""
    following = reading.layout.ids[reading.done + 1 : reading.done + count + 1]
    kept = [index for index, token in enumerate(following) if token not in given]
    return torch.tensor(kept, dtype=torch.long), [following[index] for index in kept]
