"""The contract between data and network: packed rows as tensors, and where images sit in them.

Three integer vectors say who sees whom: `visible(q, k) = document[q] == document[k] and k < end[q] and private[k] in
(0, private[q])`. Knows nothing of tokenizers, sources or networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that predicts nothing (the ecosystem's convention)."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Block:
    """The patch tokens of one image in a layout; the unit that becomes a batch's image slot."""

    pixels: Tensor
    """uint8 (3, H, W); on the meta device where they are still to be read, or only `moments` are known."""
    number: int
    """Number of the image within its document, from 1."""
    start: int
    """Index of the first patch token."""
    grid: tuple[int, int]
    """Height and width in patches."""
    noised: bool
    """A target's noised block; else clean."""
    draw: int = 0
    """Which of the target's noised blocks."""
    noise_limit: float = 1.0
    """Share of the noise levels that a target's time is drawn from, the lowest ones."""
    by_encoder: bool = False
    """Read by the vision encoder, whose features are the tokens; else patches of the latent."""
    moments: Tensor | None = None
    """float32 (K, C, h, w) from a cache: mean and, where K is 2, deviation of the latent."""
    later: Callable[[], Tensor] | None = None
    """Reads what is on the meta device until then: the moments where there are any, else the pixels."""


@dataclass
class Layout:
    """One document as tokens; all lists have one entry a token."""

    document: int = 0
    """Global number of the document."""
    source: int = 0
    """Which of the run's sources the document is from."""
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    private: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    """Token to be predicted *from* this index, or IGNORED."""
    blocks: list[Block] = field(default_factory=list)
    next_position: int = 0
    """Rotary position of the next token."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self) -> "Layout":
        """The same with every image that was still to be read, once in however many blocks it is shown."""
        later = {block.number: block.later for block in self.blocks if block.later is not None}
        found = {number: read() for number, read in later.items()}
        return replace(self, blocks=[_holding(block, found.get(block.number)) for block in self.blocks])

    def add_token(self, token: int, *, labelled: bool = False, private: int = 0) -> None:
        """One causal token; with `labelled`, the token before it learns to predict it."""
        self.add_text([token], labelled=labelled, private=private)

    def add_tokens(self, token: int, count: int, *, ends: list[int] | None, private: int) -> None:
        """`count` tokens alike, unlabelled; `ends` None: causal."""
        self.add_text([token] * count, ends=ends, private=private)

    def add_text(
        self, ids: Sequence[int], *, labelled: bool = False, ends: list[int] | None = None, private: int = 0
    ) -> None:
        """Tokens, causal where `ends` is None; with `labelled`, the token before each learns to predict it."""
        if not ids:
            return
        first, count = len(self.ids), len(ids)
        if labelled and self.labels:
            self.labels[-1] = ids[0]
        self.labels += [*ids[1:], IGNORED] if labelled else [IGNORED] * count
        self.ids += ids
        self.positions += range(self.next_position, self.next_position + count)
        self.end += range(first + 1, first + count + 1) if ends is None else ends
        self.private += [private] * count
        self.next_position += count


def _holding(block: Block, found: Tensor | None) -> Block:
    """The block with what was read of its image."""
    if found is None:
        return block
    if block.moments is not None:
        return replace(block, later=None, moments=found)
    return replace(block, later=None, pixels=found)


@dataclass(frozen=True, kw_only=True)
class ImageSlots:
    """Images of one size: M distinct pictures, and the N blocks of patch tokens that show them.

    A target shows its picture noised, in as many blocks as there are noise draws; with `clean_copy` one more block
    shows it clean. Context images show it clean.
    """

    pixels: Tensor
    """uint8 (M, 3, H, W); on the meta device where the pictures come from a cache of latents."""
    document: Tensor
    """(M,) global number of the picture's document."""
    number: Tensor
    """(M,) number of the picture within its document; with `document` it keys the randomness."""
    picture: Tensor
    """(N,) which of the M pictures a block shows."""
    row: Tensor
    """(N,) row of the block."""
    start: Tensor
    """(N,) index in the row of the block's first patch token."""
    noised: Tensor
    """(N,) bool: a target, noised, with its own time; else clean, at time 0."""
    draw: Tensor
    """(N,) which of its picture's noised blocks; with document and number it keys the randomness."""
    noise_limit: Tensor
    """(N,) float: share of the noise levels that the time of a target is drawn from, the lowest ones."""
    grid: tuple[int, int]
    """Height and width of the block in patches."""
    moments: Tensor | None = None
    """float32 (M, K, C, h, w) from a cache: mean and, where K is 2, deviation of the latents."""

    @property
    def tokens(self) -> int:
        """Patch tokens P in one block."""
        return self.grid[0] * self.grid[1]

    @property
    def targets(self) -> int:
        """Number of noised blocks."""
        return int(self.noised.sum())

    def to(self, device: torch.device) -> "ImageSlots":
        """The same slots with tensors on `device`."""
        return _moved(self, device)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B packed rows of T tokens."""

    ids: Tensor
    """int64 (B, T) token ids; patch and time tokens hold placeholders."""
    positions: Tensor
    """int64 (B, T) rotary positions; they start at 0 in every document."""
    document: Tensor
    """int64 (B, T) number of the document within its row, -1 for padding."""
    source: Tensor
    """int64 (B, T) which of the run's sources a token is from, -1 for padding."""
    end: Tensor
    """int64 (B, T) first index that a token cannot see: its own + 1 for text, the block's end for patches."""
    private: Tensor
    """int64 (B, T) 0, or a number of its own for a noised block that has a clean copy or stands beside others."""
    labels: Tensor
    """int64 (B, T) the token to be predicted from this position, or IGNORED."""
    images: tuple[ImageSlots, ...]
    """Image slots of latent patches, grouped by size."""
    vision: tuple[ImageSlots, ...] = ()
    """Image slots of a vision encoder's features, grouped by size of the picture; all clean."""

    @property
    def labelled(self) -> int:
        """Number of tokens with a label."""
        return int((self.labels != IGNORED).sum())

    @property
    def documents(self) -> int:
        """Number of documents in all rows."""
        return int((self.document.amax(dim=1) + 1).sum())

    @property
    def targets(self) -> int:
        """Number of noised blocks: target images, times the noise draws of each."""
        return sum(slots.targets for slots in self.images)

    @property
    def padding(self) -> float:
        """Share of the tokens that are padding."""
        return float((self.document < 0).float().mean())

    def to(self, device: torch.device) -> "Batch":
        """The same batch with tensors on `device`."""
        images, vision = (tuple(slots.to(device) for slots in group) for group in (self.images, self.vision))
        return replace(_moved(self, device), images=images, vision=vision)


def _moved(value: T, device: torch.device) -> T:
    tensors: dict[str, Any] = {
        f.name: getattr(value, f.name).to(device, non_blocking=True)
        for f in fields(value)  # type: ignore[arg-type]
        if isinstance(getattr(value, f.name), Tensor) and not getattr(value, f.name).is_meta
    }
    return replace(value, **tensors)  # type: ignore[type-var]
