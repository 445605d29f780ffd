"""How many floating-point operations a training step must do, from the network's weights and what a batch holds.

The one place that counts them: for the share of the machine's peak in `metrics.jsonl` (MFU), the planner and the
benchmark. Counted is what must be done: 6 for each weight of a matrix and each token that it must see (2 forward, 4
backward), attention over visible pairs alone; not recomputation, padding, norms or the optimizer. Knows no hardware.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monoformer.batch import Batch
from monoformer.config.model import ModelConfig
from monoformer.model.monoformer import MonoFormer

CONVOLUTION = re.compile(r"(levels|downs|ups)\.(\d+)\.")
"""Where a U-Net's weight sits: its level, the finest being 0; a down ends one level lower."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the weights see in a pass or a step; each name is also the kind of the weights that see it."""

    tokens: float
    """Text and image tokens, padding left out."""
    image_tokens: float
    """Patches and a vision encoder's features."""
    patches: float
    """Patches of images read and drawn."""
    targets: float
    """Patches of images drawn."""
    images: float
    """Images with a time."""
    features: float
    """Tokens of a vision encoder."""
    labelled: float
    """Tokens with a label."""
    pairs: float
    """Pairs of tokens of which one sees the other."""

    @property
    def text_tokens(self) -> float:
        """Tokens that are no image's."""
        return self.tokens - self.image_tokens


class Operations:
    """Floating-point operations of one network, forward and backward."""

    def __init__(self, model: MonoFormer) -> None:
        config = model.config
        self.weights: dict[str, float] = {}
        """Operations for each thing seen, by what is seen."""
        for name, weight in model.named_parameters():
            kind = kind_of(name, config)
            if weight.ndim >= 2 and kind:
                own = (6.0 if weight.requires_grad else 4.0) * weight.numel() * _positions(name, config)
                self.weights[kind] = self.weights.get(kind, 0.0) + own
        self.pair = 12.0 * config.heads * config.head_width * config.layers

    def count(self, seen: Seen) -> float:
        """Operations of a forward and a backward pass over what is seen."""
        return float(sum(own * getattr(seen, kind) for kind, own in self.weights.items()) + self.pair * seen.pairs)


def kind_of(name: str, config: ModelConfig) -> str:
    """What the weights of that name see: a field of `Seen`, or '' for a table that is only looked up."""
    if name == "tokens.weight":
        return "labelled" if config.tie_embeddings else ""
    if name.startswith("text_head."):
        return "labelled"
    if "modulation" in name or name.startswith(("time.", "time_token.")) or ".time." in name:
        return "images"
    for start, kind in (("patches.", "patches"), ("image_head.", "targets"), ("vision.", "features")):
        if name.startswith(start):
            return kind
    if config.experts == "shared":
        return "tokens"
    return "image_tokens" if ".image." in name else "text_tokens"


def _positions(name: str, config: ModelConfig) -> float:
    """How often a weight is used for each thing that it sees: a convolution's at every place of a patch."""
    if config.image_patches == "linear" or "coder." not in name or "modulation" in name or ".time." in name:
        return 1.0
    found = CONVOLUTION.search(name)
    level = int(found[2]) + (found[1] == "downs") if found else 0
    return float((config.patch / 2**level) ** 2)


def seen_in(batch: Batch) -> Seen:
    """What the weights see in a batch. Reads its tensors: give one that is on the CPU."""
    patches = sum(len(slots.row) * slots.tokens for slots in batch.images)
    images = sum(len(slots.row) for slots in batch.images)
    features = sum(len(slots.row) * slots.tokens for slots in batch.vision)
    return Seen(
        tokens=int((batch.document >= 0).sum()),
        image_tokens=patches + features,
        patches=patches,
        targets=sum(slots.targets * slots.tokens for slots in batch.images),
        images=images,
        features=features,
        labelled=batch.labelled,
        pairs=int(visible_counts(batch).sum()),
    )


def visible_counts(batch: Batch) -> Tensor:
    """How many tokens each token sees, int64 (B, T), 0 for padding: the mask's rule without the mask."""
    index = torch.arange(batch.ids.shape[1])
    public = F.pad(((batch.private == 0) & (batch.document >= 0)).cumsum(1), (1, 0))
    begins = _first_of_run(batch.document[:, :, None], index)
    counts = public.gather(1, batch.end) - public.gather(1, begins)
    own = batch.end - _first_of_run(torch.stack([batch.document, batch.private], dim=2), index)
    counts = counts + torch.where(batch.private > 0, own, 0)
    return torch.where(batch.document >= 0, counts, 0)


def _first_of_run(values: Tensor, index: Tensor) -> Tensor:
    """Index (B, T) at which each token's run of equal values (B, T, n) begins."""
    changes = (values[:, 1:] != values[:, :-1]).any(2)
    return torch.where(F.pad(changes, (1, 0), value=True), index, 0).cummax(1).values
