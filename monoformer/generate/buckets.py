"""Which rows share a pass; and fixed shapes of passes, so that a request's bits do not depend on its neighbours.

A matrix product's last bits depend on how many rows it has, attention's on how long the cache is. With buckets each
row goes through passes whose shapes follow from itself alone: a fixed number of rows, tokens and cached keys rounded
up.
Knows nothing of sessions.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

TOKENS = 64
"""Tokens of a pass and of the cache are rounded up to a multiple of so many; one token stays one."""
CPU_TOKENS = 1024
"""Image tokens of one pass on a CPU: in larger ones what the layers hand on no longer fits its caches."""


@dataclass(frozen=True)
class Buckets:
    """The shapes that passes may have."""

    rows: int = 8
    """Rows of every pass that reads, empty ones included."""
    pictures: int = 8
    """Rows of every pass that denoises. On a CPU, where larger ones are no faster, 2: a guided picture."""

    @classmethod
    def of(cls, device: torch.device) -> "Buckets":
        """Those that suit a device."""
        return cls(pictures=2) if device.type == "cpu" else cls()

    @staticmethod
    def groups(shapes: Sequence[Hashable], *, most: int) -> list[list[int]]:
        """The rows of each pass: as many as fit, and only such as have one shape."""
        found: dict[Hashable, list[int]] = {}
        for row, shape in enumerate(shapes):
            found.setdefault(shape, []).append(row)
        return [rows[i : i + most] for rows in found.values() for i in range(0, len(rows), most)]


def rounded(count: int, *, most: int | None = None) -> int:
    """The bucket of a number of tokens, at most `most`."""
    up = count if count < 2 else -(-count // TOKENS) * TOKENS
    return up if most is None else min(up, most)


def similar(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are read together on a CPU, whose time goes with the tokens: none is padded to much more than twice."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and 2 * lengths[row] + CPU_TOKENS // 16 >= lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group) for group in groups]
