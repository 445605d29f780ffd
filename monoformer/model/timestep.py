"""The time embedding, and modulation by it. fp32: a bf16 sinusoid of 1000 t loses the time (DiT, section 3.2)."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoid of 256 numbers, then a two-layer SiLU network: network times (N,) -> (N, D)."""

    def __init__(self, width: int, *, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.input = nn.Linear(frequencies, width)
        self.output = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """time (N,) as `Path.network_time` gives it -> (N, D) fp32."""
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
        angles = time.float()[:, None] * rates
        with torch.autocast(time.device.type, enabled=False):  # fp32 island
            sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.input.weight.dtype)
            embedding: Tensor = self.output(nn.functional.silu(self.input(sinusoid)))
        return embedding


class TimeToken(nn.Module):
    """The token of an image's time: the time embedding through linear, GELU, linear (the official code's projector)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Time embeddings (N, D) -> (N, D)."""
        result: Tensor = self.output(nn.functional.gelu(self.input(time)))
        return result


class Modulation(nn.Module):
    """Shifts, scales and gates from the time, zero at the start; `parts` vectors for each condition."""

    def __init__(self, width: int, parts: int, outputs: int = 0) -> None:
        """`outputs`: width of each vector; 0: the condition's own."""
        super().__init__()
        self.linear = nn.Linear(width, parts * (outputs or width))

    def forward(self, condition: Tensor) -> Tensor:
        """condition (N, width) -> (N, parts * outputs)."""
        result: Tensor = self.linear(nn.functional.silu(condition))
        return result
