"""Seeded, explicit randomness: a generator for every key, never the global one.

Invariant: numbers depend on the key alone, so ranks, workers and batch sizes do not change them (DESIGN 4).
"""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone, e.g. `generator(seed, document, image, "noise")`."""
    return torch.Generator().manual_seed(_number(key))


def uniform(*key: int | str) -> float:
    """One number in [0, 1) that depends on the key alone."""
    return (_number(key) >> 11) / 2**53


def _number(key: tuple[int | str, ...]) -> int:
    """64 bits that depend on the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
