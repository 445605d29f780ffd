"""Who sees whom, and attention over it.

`visible` is the one rule (DESIGN 1): causal text, two-way images, any number of images, packed documents, and noised
images that nobody else may see. SDPA receives it as a matrix, FlexAttention as a function; both call `visible`.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from monoformer.batch import Batch

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
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if not _compiled_flex:
        _compiled_flex.append(torch.compile(flex_attention))
    result: Tensor = _compiled_flex[0](q, k, v, block_mask=mask, enable_gqa=grouped)
    return result


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
        """A cache of zeros: 2 * layers * slots * heads * capacity * width numbers."""
        shape = (layers, slots, heads, capacity, width)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))


@dataclass(frozen=True)
class CacheView:
    """The part of a cache that one pass reads, and where it writes."""

    cache: KVCache
    slots: Tensor
    """(B,) slot of each row."""
    lengths: Tensor
    """(B,) tokens already in each slot."""
    span: int
    """Longest of `lengths`, or more: cached keys [0, span) are read, those beyond a slot's length masked."""
    write: bool
    """Whether the pass's keys and values are stored at [length, length + T)."""
    counts: Tensor
    """(B,) how many of the T tokens are real; what lies beyond is padding, neither stored nor seen."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, span + T, K): what the slots hold, then the pass's own (B, G, T, K)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if self.write:
            tokens = torch.arange(k.shape[2], device=k.device)
            row, token = torch.nonzero(tokens < self.counts[:, None], as_tuple=True)
            slot, place = self.slots[row], self.lengths[row] + token
            keys[slot, :, place] = k[row, :, token].to(keys.dtype)
            values[slot, :, place] = v[row, :, token].to(values.dtype)
        past_k, past_v = keys[self.slots, :, : self.span], values[self.slots, :, : self.span]
        return torch.cat([past_k, k.to(past_k.dtype)], dim=2), torch.cat([past_v, v.to(past_v.dtype)], dim=2)

    def mask(self, end: Tensor, private: Tensor | None = None) -> Tensor:
        """bool (B, 1, T, span + T) by the same rule: `end` (B, T) counts from the pass's first token.

        `private` (B, T) None: all 0. What is cached is never private.
        """
        device = end.device
        past = torch.arange(self.span, device=device) < self.lengths[:, None]  # (B, span)
        own = torch.arange(end.shape[1], device=device)
        zero = torch.zeros((), dtype=torch.long, device=device)
        private_q, private_k = (zero, zero) if private is None else (private[:, :, None], private[:, None, :])
        present = visible(zero, end[:, :, None], private_q, own, zero, private_k)  # (B, T, T)
        present = present & (own < self.counts[:, None])[:, None, :]
        # a padding query sees itself, or its softmax would divide by zero
        present = present | torch.eye(end.shape[1], dtype=torch.bool, device=device)
        past = past[:, None, :].expand(-1, end.shape[1], -1)
        return torch.cat([past, present], dim=2)[:, None]
