"""Who sees whom, and attention over it.

`visible` is the one rule (DESIGN 1): causal text, two-way images, any number of images, packed documents, and noised
images that nobody else may see. SDPA receives it as a matrix, FlexAttention as a function; both call `visible`.
"""

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from monoformer.batch import Batch
from monoformer.model.kernels import AttendFunction, attend_by_products

Mask: TypeAlias = Tensor | BlockMask
"""bool (B, 1, T, S) for SDPA, or FlexAttention's block mask."""


def visible(
    document_q: Tensor, end_q: Tensor, private_q: Tensor, index_k: Tensor, document_k: Tensor, private_k: Tensor
) -> Tensor:
    """Who sees whom, broadcast: document[q] == document[k] and k < end[q] and private[k] in (0, private[q])."""
    return (document_q == document_k) & (index_k < end_q) & ((private_k == 0) | (private_k == private_q))


def dense_mask(batch: Batch) -> Tensor:
    """The rule as a matrix, bool (B, 1, T, T)."""
    index = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    mask = visible(
        batch.document[:, :, None],
        batch.end[:, :, None],
        batch.private[:, :, None],
        index[None, None, :],
        batch.document[:, None, :],
        batch.private[:, None, :],
    )
    return mask[:, None]


def flex_mask(batch: Batch) -> BlockMask:
    """The rule as FlexAttention's block mask: whole blocks that nobody sees are skipped."""
    document, end, private = batch.document, batch.end, batch.private

    def rule(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(document[b, q], end[b, q], private[b, q], k, document[b, k], private[b, k])

    rows, tokens = batch.ids.shape
    return create_block_mask(rule, rows, None, tokens, tokens, device=str(batch.ids.device))


def build_mask(batch: Batch) -> Mask:
    """FlexAttention's mask on CUDA, where it also trains; a matrix elsewhere."""
    return flex_mask(batch) if batch.ids.is_cuda else dense_mask(batch)


_compiled_flex: list[Any] = []  # FlexAttention is slow unless compiled; compiled once a process


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Scaled dot-product attention: q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K). None: everything is seen."""
    grouped = q.shape[1] != k.shape[1]
    if prefers_products(q, k):
        if isinstance(mask, Tensor) and torch.is_grad_enabled():
            kept: Tensor = AttendFunction.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
            return kept
        if mask is None and not torch.is_grad_enabled():
            return attend_by_products(q, k, v, None)[0]
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if not _compiled_flex:
        _compiled_flex.append(torch.compile(flex_attention))
    result: Tensor = _compiled_flex[0](q, k, v, block_mask=mask, enable_gqa=grouped)
    return result


def prefers_products(q: Tensor, k: Tensor) -> bool:
    """Whether matrix products are faster than SDPA: in bf16 on a CPU, while all probabilities are few (32 MB)."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q[..., 0].numel() * k.shape[2] <= 2**24


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, on a CPU in pages that the system gives when they are first written to."""
    count = math.prod(shape)
    if device.type != "cpu" or not count:
        return torch.zeros(shape, device=device, dtype=dtype)
    pages = mmap.mmap(-1, count * dtype.itemsize)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


@dataclass
class KVCache:
    """Keys and values of what was read so far, in slots of fixed capacity; one slot is one context.

    Explicit state: the caller says which slots a pass uses and when what it wrote becomes part of them (`lengths`).
    Patches of an image still being denoised are attended to but never written.
    """

    keys: Tensor
    """(layers, slots, G, capacity, K)."""
    values: Tensor
    """(layers, slots, G, capacity, K)."""

    @classmethod
    def empty(
        cls, layers: int, slots: int, heads: int, capacity: int, width: int, *, device: torch.device, dtype: torch.dtype
    ) -> "KVCache":
        """A cache of zeros: 2 * layers * slots * heads * capacity * width numbers; on a CPU those of slots that nothing
        was written to yet take no memory.
        """
        shape = (layers, slots, heads, capacity, width)
        return cls(_zeros(shape, device, dtype), _zeros(shape, device, dtype))


class View(Protocol):
    """What a pass reads beside its own tokens."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, H, T, K) over what is held and the pass's own k and v (B, G, T, K) -> (B, H, T, K)."""
        ...


@dataclass(kw_only=True)
class CacheView:
    """The part of a cache that one pass reads, and where it writes."""

    cache: KVCache
    slots: Sequence[int]
    """Slot of each of the B rows."""
    lengths: Sequence[int]
    """Tokens already in each slot."""
    counts: Sequence[int]
    """How many of the T tokens are real; what lies beyond is padding, neither stored nor seen."""
    span: int
    """Longest of `lengths`, or more: keys beyond a slot's length are masked."""
    write: bool
    """Whether the pass's keys and values are stored at [length, length + count)."""
    image: int | None = None
    """The index from which all T tokens are one image, which sees all before it and itself both ways; `attend` then
    needs no mask."""
    _rows: Tensor | slice = field(init=False)
    _level: bool = field(init=False)
    """Whether what is written is one block of the cache."""
    _stored: Sequence[Tensor] = field(init=False, default=())
    """Else row, token, slot and place of each token that is written."""

    def __post_init__(self) -> None:
        self._rows = self._chosen(self.slots)
        self._level = len({*self.lengths}) == len({*self.counts}) == 1 and isinstance(self._rows, slice)
        if self.write and not self._level:
            pairs = enumerate(zip(self.slots, self.lengths, self.counts, strict=True))
            places = [(row, t, slot, length + t) for row, (slot, length, n) in pairs for t in range(n)]
            self._stored = torch.tensor(places, dtype=torch.long, device=self.cache.keys.device).view(-1, 4).unbind(1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, H, T, K) over what the slots hold and the pass's own k and v (B, G, T, K) -> (B, H, T, K).

        Computed in the cache's dtype, pictures in that of v, which the result has.
        `mask` as `mask` makes it; None: what `image` says, or for a single token that all is seen.
        """
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        own = v.dtype
        if self.write:
            self._store(keys, k)
            self._store(values, v)
            stop = self.span + k.shape[2]
            held_k, held_v = (x[self._rows, :, :stop] for x in (keys, values))
            return attend(q.to(keys.dtype), held_k, held_v, mask).to(own)
        if self.image is None or mask is not None:
            past_k, past_v = (x[self._rows, :, : self.span] for x in (keys, values))
            all_k, all_v = torch.cat([past_k, k.to(keys.dtype)], dim=2), torch.cat([past_v, v.to(keys.dtype)], dim=2)
            return attend(q.to(keys.dtype), all_k, all_v, mask).to(own)
        q, k = q.to(own), k.to(own)
        found = torch.empty_like(q)
        for rows, length in self._alike():
            slots = self._chosen(self.slots[rows])
            all_k, all_v = (
                torch.cat([held[slots, :, :length].to(own), x[rows]], dim=2) for held, x in ((keys, k), (values, v))
            )
            for token in range(self.image):  # what stands before the image, its time, is causal
                stop = length + token + 1
                found[rows, :, token : token + 1] = attend(
                    q[rows, :, token : token + 1], all_k[:, :, :stop], all_v[:, :, :stop], None
                )
            found[rows, :, self.image :] = attend(q[rows, :, self.image :], all_k, all_v, None)
        return found

    def mask(self, end: Tensor, private: Tensor | None = None) -> Tensor:
        """bool (B, 1, T, S) by the same rule: `end` (B, T) counts from the pass's first token.

        `private` (B, T) None: all 0. What is cached is never private. S is what `attend` reads: with `write` the slots
        to `span` + T, where the pass's own keys follow what was there; else `span` and then the own T.
        """
        device, tokens = end.device, end.shape[1]
        lengths, counts = (torch.tensor(list(x), device=device)[:, None] for x in (self.lengths, self.counts))
        own = torch.arange(tokens, device=device)
        zero = torch.zeros((), dtype=torch.long, device=device)
        padding = (own >= counts)[:, :, None]  # a padding query sees one token, or its softmax would divide by zero
        if self.write:
            assert private is None, "what is written is never private"
            index = torch.arange(min(self.span + tokens, self.cache.keys.shape[3]), device=device)
            key = (index - lengths)[:, None, :]  # its index in the pass; below 0 it is of the past
            present = visible(zero, end[:, :, None], zero, key, zero, zero) & (key < counts[:, :, None])
            return (present | (padding & (index == 0)))[:, None]
        past = (torch.arange(self.span, device=device) < lengths)[:, None, :].expand(-1, tokens, -1)
        private_q, private_k = (zero, zero) if private is None else (private[:, :, None], private[:, None, :])
        present = visible(zero, end[:, :, None], private_q, own, zero, private_k) & (own < counts)[:, None, :]
        present = present | (padding & torch.eye(tokens, dtype=torch.bool, device=device))
        return torch.cat([past, present], dim=2)[:, None]

    def _store(self, held: Tensor, own: Tensor) -> None:
        """Write the real ones of the pass's own keys or values (B, G, T, K) into a layer's (slots, G, capacity, K)."""
        if self._level:
            first, count = self.lengths[0], self.counts[0]
            held[self._rows, :, first : first + count] = own[:, :, :count]
        else:
            row, token, slot, place = self._stored
            held[slot, :, place] = own[row, :, token].to(held.dtype)

    def _chosen(self, slots: Sequence[int]) -> Tensor | slice:
        """The slots as an index; those that lie beside each other as a slice, which copies nothing."""
        first = slots[0]
        if list(slots) == list(range(first, first + len(slots))):
            return slice(first, first + len(slots))
        return torch.tensor(list(slots), device=self.cache.keys.device)

    def _alike(self) -> list[tuple[slice, int]]:
        """Runs of rows with equally much in their slots, and how much that is."""
        starts = [row for row, length in enumerate(self.lengths) if not row or length != self.lengths[row - 1]]
        stops = [*starts[1:], len(self.lengths)]
        return [(slice(a, b), self.lengths[a]) for a, b in zip(starts, stops, strict=True)]
