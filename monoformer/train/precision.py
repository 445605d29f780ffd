"""Which precision a run computes in; knows nothing of what is computed."""

import torch

from monoformer.config.train import TrainConfig
from monoformer.device import has_bf16_units


def computes_in_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether matrix products are in bfloat16: asked for, or left open where the device is faster with it."""
    return config.precision == "bf16" or (config.precision == "auto" and has_bf16_units(device))
