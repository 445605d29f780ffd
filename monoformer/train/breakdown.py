"""Losses by source and by noise level, added up on the device.

Knows nothing of models. Invariant: nothing here waits for the device but `read` and `state_dict`, which are called when
a line of metrics or a checkpoint is written; so a step costs a few small additions.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from monoformer.train.parallel import Ranks

LEVELS = 5
"""Noise levels told apart: equal parts of the times from 0 (clean) to 1 (noise)."""

Parts: TypeAlias = dict[str, dict[str, float]]
"""Mean losses: by what they are parted, then by part."""


class Breakdown:
    """Sums and counts since the last line: text by source, images by source, images by level."""

    def __init__(self, sources: Sequence[str], *, device: torch.device) -> None:
        """`sources`: names of the run's sources; parts by source are told where there are two or more."""
        self.sources = tuple(sources) if len(sources) > 1 else ()
        self._step = torch.zeros(2 * len(self.sources) + LEVELS, 2, device=device)  # sum and count of each part
        self._kept = torch.zeros_like(self._step)

    def add_text(self, source: Tensor, losses: Tensor) -> None:
        """Losses (N,) of labelled tokens that are from sources (N,)."""
        if self.sources:
            self._add(source, losses)

    def add_images(self, source: Tensor, t: Tensor, losses: Tensor) -> None:
        """Losses (N,) of target images from sources (N,) at times (N,)."""
        count = len(self.sources)
        if count:
            self._add(count + source, losses)
        self._add(2 * count + (t * LEVELS).long().clamp(max=LEVELS - 1), losses)

    def _add(self, parts: Tensor, losses: Tensor) -> None:
        own = losses.detach().float()
        self._step.index_add_(0, parts, torch.stack([own, torch.ones_like(own)], dim=1))

    def keep(self) -> None:
        """The step's losses count."""
        self._kept += self._step
        self._step.zero_()

    def drop(self) -> None:
        """The step is left out: its losses do not count."""
        self._step.zero_()

    def collect(self, ranks: Ranks) -> None:
        """Move what all processes kept to the first one."""
        if ranks.world > 1:
            sums = torch.tensor(ranks.total(*self._kept.flatten().tolist())).view_as(self._kept)
            self._kept = (sums if ranks.first else torch.zeros_like(sums)).to(self._kept)

    def read(self) -> Parts:
        """Means of the steps kept, of the parts that had any; starts anew."""
        sums, count = self._kept.tolist(), len(self.sources)
        self._kept.zero_()
        levels = [f"{level / LEVELS:g}-{(level + 1) / LEVELS:g}" for level in range(LEVELS)]
        kinds = {
            "text_loss_by_source": (self.sources, sums[:count]),
            "image_loss_by_source": (self.sources, sums[count : 2 * count]),
            "image_loss_by_level": (levels, sums[2 * count :]),
        }
        means = {
            kind: {name: total / number for name, (total, number) in zip(names, rows, strict=True) if number}
            for kind, (names, rows) in kinds.items()
        }
        return {kind: parts for kind, parts in means.items() if parts}

    def state_dict(self) -> list[list[float]]:
        """Sums and counts of the steps kept since the last line."""
        state: list[list[float]] = self._kept.tolist()
        return state

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Go on with the sums of a checkpoint; those of other parts, from before they existed, are left out."""
        if len(state) == len(self._kept):
            self._kept = torch.tensor(state).to(self._kept)
