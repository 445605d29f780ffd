"""Pixels to latents and back.

Knows nothing of patches or noise. Invariant: `decode(encode(pixels)) == pixels` for the pixel autoencoder, whose
latent is the image itself. Diffusers' autoencoders come behind the same protocol.
"""

from typing import Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """What stands between pictures and what the network reads and draws."""

    channels: int
    down: int

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> latents (N, channels, H / down, W / down), about unit scale."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, channels, h, w) -> uint8 (N, 3, h * down, w * down)."""
        ...


class Pixels:
    """The identity: latents are pixels in [-1, 1] (JiT, arXiv 2511.13720)."""

    channels = 3
    down = 1

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 in [-1, 1]."""
        return pixels.float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Float (N, 3, H, W) -> uint8, clamped and rounded."""
        return ((latents.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
