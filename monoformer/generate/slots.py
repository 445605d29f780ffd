"""Who uses which slot of the cache, and what each one holds: nothing is read twice that some slot still knows.

Slots are counted: contexts that are only read are used by many drawings, and go back when the last one ends. A slot
that went back keeps its tokens until it is needed, so that a talk which goes on finds its cache. Knows nothing of
sessions. Invariant: `keys[slot][:filled[slot]]` names the tokens in the slot; an image's tokens have all one key, its
pixels', so that no common prefix ends inside an image.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import TypeAlias

from monoformer.batch import Block, Layout
from monoformer.model.attention import KVCache

Keys: TypeAlias = list[Hashable]

WORTH = 8
"""Tokens below which a common prefix is read again: copying it costs as much."""


class Slots:
    """The slots of one cache."""

    def __init__(self, cache: KVCache) -> None:
        count = cache.keys.shape[1]
        self.cache = cache
        self.free = list(range(count))
        """Slots that nobody uses, the one that was given back first in front."""
        self.users = [0] * count
        self.keys: list[Keys] = [[] for _ in range(count)]
        """What each slot holds, and will hold when what is being read is read."""
        self.filled = [0] * count
        self.broken = [False] * count
        self.written = [False] * count
        """Whether anything was ever read into it."""

    def take(self, slot: int | None = None) -> int:
        """Use a free slot: this one, or the one that has been free for longest; it forgets what it held."""
        slot = self.free[0] if slot is None else slot
        self.free.remove(slot)
        self.users[slot] = 1
        self.written[slot] = True
        self.clear(slot)
        return slot

    def clear(self, slot: int) -> None:
        """Forget what the slot holds; its user reads something else into it."""
        self.keys[slot], self.filled[slot] = [], 0

    def forget(self) -> None:
        """Forget what free slots hold and which became free first, so that the bits of what comes next do not depend on
        what came before.
        """
        self.free.sort()
        for slot in self.free:
            self.clear(slot)

    def share(self, slot: int) -> int:
        """Use a slot that somebody uses already."""
        assert self.users[slot], "a slot that nobody uses is taken, not shared"
        self.users[slot] += 1
        return slot

    def release(self, slot: int, *, broken: bool = False) -> bool:
        """Use it no longer; whether that was its last user. A `broken` slot's numbers reach nobody after this."""
        self.users[slot] -= 1
        self.broken[slot] |= broken
        if self.users[slot]:
            return False
        if self.broken[slot]:
            self._wipe(slot)
            self.clear(slot)
        self.broken[slot] = False
        del self.keys[slot][self.filled[slot] :]
        self.free.append(slot)
        return True

    def wipe(self) -> None:
        """Leave no number of what was ever read."""
        for slot, written in enumerate(self.written):
            if written:
                self._wipe(slot)

    def _wipe(self, slot: int) -> None:
        """0 * NaN is NaN: even masked keys and values would spread it."""
        self.cache.keys[:, slot].zero_()
        self.cache.values[:, slot].zero_()

    def read(self, slot: int, layout: Layout, *, time_token: bool) -> None:
        """Note that the layout was read into the slot."""
        if self.filled[slot] == len(self.keys[slot]):
            self.keys[slot] += keys_of(layout, time_token=time_token)
        self.filled[slot] += len(layout)

    def longest(self, keys: Keys) -> tuple[int, int]:
        """The slot that begins most like `keys`, and for how many tokens; (0, 0) where none does."""
        found = [(common(keys, held), not self.users[slot], slot) for slot, held in enumerate(self.keys)]
        length, _, slot = max(found)
        return (slot, length) if length else (0, 0)

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of a slot."""
        for tensor in (self.cache.keys, self.cache.values):
            tensor[:, target, :, :count] = tensor[:, source, :, :count]
        self.keys[target] = [*self.keys[source][:count], *self.keys[target][count:]]
        self.filled[target] = count


def keys_of(layout: Layout, *, time_token: bool) -> Keys:
    """What each token is, so that equal beginnings of two lists are equal contents of a cache."""
    keys: Keys = list(layout.ids)
    for block in layout.blocks:
        digest = hashlib.blake2b(block.pixels.contiguous().numpy().tobytes(), digest_size=16).digest()
        key, (first, end) = (digest, block.grid, block.by_encoder), extent(block, time_token=time_token)
        keys[first:end] = [key] * (end - first)
    return keys


def extent(block: Block, *, time_token: bool) -> tuple[int, int]:
    """Where an image's tokens begin, with its time token, and end."""
    return block.start - (time_token and not block.by_encoder), block.start + block.grid[0] * block.grid[1]


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many entries two lists share from their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
