"""Rotary positions, with the ways in which pretrained language models stretched them to longer contexts.

fp32 throughout. The order of operations is that of Hugging Face transformers, so that the tables agree with its own to
the last bit: at position 2000 one unit in the last place of a frequency already turns a pair by 1e-4.
"""

import math
from typing import assert_never

import torch
from torch import Tensor

from monoformer.config.model import LinearScaling, Llama3Scaling, NoScaling, RopeScaling, YarnScaling
from monoformer.model.kernels import turn


def rotary(positions: Tensor, width: int, theta: float, scaling: RopeScaling) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions (B, T) -> two (B, T, 1, K / 2); fp32."""
    rates, amplitude = frequencies(width, theta, scaling, positions.device)
    angles = positions[:, :, None, None].float() * rates
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate (B, T, H, K) by its positions, halves paired as in Hugging Face LLaMA."""
    return turn(x, cosine.to(x.dtype), sine.to(x.dtype))


def frequencies(width: int, theta: float, scaling: RopeScaling, device: torch.device) -> tuple[Tensor, float]:
    """Radians a position (K / 2,), and what cosines and sines are multiplied by."""
    powers = theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    rates = 1.0 / powers
    match scaling:
        case NoScaling():
            return rates, 1.0
        case LinearScaling(factor=factor):
            return rates / factor, 1.0
        case Llama3Scaling(factor=factor, low=low, high=high, original_context=original):
            kept = ((original / (2 * math.pi / rates) - low) / (high - low)).clamp(0, 1)
            return (1 - kept) * rates / factor + kept * rates, 1.0
        case YarnScaling(factor=factor, attention_factor=amplitude):
            kept = 1 - _yarn_ramp(width, theta, scaling, device)
            return 1.0 / (factor * powers) * (1 - kept) + rates * kept, amplitude
        case _:
            assert_never(scaling)


def _yarn_ramp(width: int, theta: float, scaling: YarnScaling, device: torch.device) -> Tensor:
    """0 for frequencies that are kept, 1 for those that are divided, by their number (K / 2,)."""
    original = scaling.original_context
    first, last = (
        width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    number = torch.arange(width // 2, device=device, dtype=torch.float32)
    return ((number - first) / (last - first)).clamp(0, 1)
