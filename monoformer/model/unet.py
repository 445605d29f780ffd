"""A small residual U-Net around the transformer: latents to one token per patch, and hidden tokens back to latents.

The halves of the U-Net of DDPM and Saharia et al. (arXiv 2205.11487) without attention; the transformer is its middle
(Transfusion). A patch of side 2, 4 or 8 is 1, 2 or 3 steps down. Knows nothing of tokens or noise.
Invariant: images never mix, since every statistic is of one image.
"""

import math
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from monoformer.config.model import ModelConfig
from monoformer.model.timestep import Modulation

Skips: TypeAlias = tuple[Tensor, ...]
"""What the encoder keeps for the decoder, one (N, channels, h, w) a level from fine to coarse; none without U-Net."""

BLOCKS = 3
"""Residual blocks a level and direction."""
TIME = 128
"""Numbers by which the residual blocks know the time."""


def unet_widths(config: ModelConfig) -> list[int]:
    """Channels of every level: `unet_width` at the latent's resolution, twice that below."""
    return [config.unet_width * min(2, level + 1) for level in range(config.patch.bit_length())]


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """3x3, the size kept or halved."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least four channels: groups of one would normalise a single pixel at the coarsest."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


class ResidualBlock(nn.Module):
    """Two convolutions; the time scales and shifts between them (arXiv 2105.05233, section 3). Starts as nothing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first_norm, self.first = norm(inputs), convolution(inputs, outputs)
        self.second_norm, self.second = norm(outputs), convolution(outputs, outputs)
        self.modulation = Modulation(TIME, 2, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, inputs, h, w), time (N, TIME) -> (N, outputs, h, w)."""
        y = self.first(F.silu(self.first_norm(x)))
        shift, scale = self.modulation(condition)[:, :, None, None].to(y.dtype).chunk(2, dim=1)
        y = torch.addcmul(shift, self.second_norm(y).to(y.dtype), 1 + scale)
        result: Tensor = self.shortcut(x) + self.second(F.silu(y))
        return result


class Level(nn.Module):
    """The residual blocks at one resolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width if number else inputs, width) for number in range(BLOCKS))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, inputs, h, w), time (N, TIME) -> (N, width, h, w)."""
        for block in self.blocks:
            x = block(x, condition)
        return x


class UNetEncoder(nn.Module):
    """Down: residual blocks and halvings, from the latent to a vector per patch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = unet_widths(config)
        self.time = nn.Linear(config.width, TIME)
        self.input = convolution(config.channels, widths[0])
        self.levels = nn.ModuleList(Level(width, width) for width in widths)
        self.downs = nn.ModuleList(convolution(a, b, stride=2) for a, b in pairwise(widths))

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Skips]:
        """Latents (N, C, h, w), time embeddings (N, D) -> (N, widths[-1], h / p, w / p) and what the decoder needs."""
        condition = self.time(time.to(self.time.weight.dtype))
        x = self.input(x.to(self.input.weight.dtype))
        skips: list[Tensor] = []
        for number, level in enumerate(self.levels):
            x = level(self.downs[number - 1](x) if number else x, condition)
            skips.append(x)
        return x, tuple(skips)


class UNetDecoder(nn.Module):
    """Up: residual blocks over what the encoder kept, and doublings, from a vector per patch to the prediction."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = unet_widths(config)
        self.time = nn.Linear(config.width, TIME)
        self.levels = nn.ModuleList(Level(2 * width, width) for width in widths)
        self.ups = nn.ModuleList(convolution(b, a) for a, b in pairwise(widths))
        self.norm, self.output = norm(widths[0]), convolution(widths[0], config.predicted_channels)

    def forward(self, y: Tensor, time: Tensor, skips: Skips) -> Tensor:
        """(N, widths[-1], h / p, w / p), time embeddings (N, D) -> predictions (N, C, h, w)."""
        assert len(skips) == len(self.levels), "the U-Net decoder needs the skips that its encoder made of the images"
        condition = self.time(time.to(self.time.weight.dtype))
        for number in reversed(range(len(skips))):
            y = self.levels[number](torch.cat([y.to(skips[number].dtype), skips[number]], dim=1), condition)
            if number:  # einops, since the gradient of F.interpolate is not deterministic on CUDA
                y = self.ups[number - 1](repeat(y, "N C h w -> N C (h a) (w b)", a=2, b=2))
        result: Tensor = self.output(F.silu(self.norm(y)))
        return result
