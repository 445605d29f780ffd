"""Parameter groups, learning-rate schedule, exponential moving average.

Invariant: every trained parameter is in exactly one group; the rate is a function of the step alone, so resuming needs
no scheduler state.
"""

import math
from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from monoformer.config.train import AdamWConfig, MuonConfig, TrainConfig
from monoformer.train.muon import Muon
from monoformer.train.precision import computes_in_bf16


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it: the projections of attention and MLP, but not their adapters."""
    return parameter.ndim == 2 and (".attention." in name or ".mlp." in name) and ".lora_" not in name


def build_optimizers(
    model: nn.Module, config: TrainConfig, hidden: Callable[[str, Tensor], bool] = is_hidden_matrix
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for what is `hidden` beside AdamW. Each group keeps its peak rate in `peak`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    match config.optimizer:
        case AdamWConfig(rate=rate, betas=betas, weight_decay=decay):
            return [torch.optim.AdamW(_by_decay(named, rate, decay, config), lr=rate, betas=betas, fused=True)]
        case MuonConfig(rate=rate, momentum=momentum, adamw_rate=adamw_rate, betas=betas, weight_decay=decay):
            matrices = [p for name, p in named if hidden(name, p)]
            rest = [(name, p) for name, p in named if not hidden(name, p)]
            adamw = torch.optim.AdamW(
                _by_decay(rest, adamw_rate, decay, config), lr=adamw_rate, betas=betas, fused=True
            )
            if not matrices:  # adapters alone
                return [adamw]
            device = matrices[0].device
            iteration = torch.bfloat16 if device.type == "cuda" or computes_in_bf16(config, device) else torch.float32
            muon = [{"params": matrices, "peak": rate}]
            return [Muon(muon, lr=rate, momentum=momentum, weight_decay=decay, dtype=iteration), adamw]
        case _:
            assert_never(config.optimizer)


def _by_decay(
    named: list[tuple[str, nn.Parameter]], rate: float, decay: float, config: TrainConfig
) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; nor do the two matrices of which `freeze` keeps some rows."""
    kept = ("tokens.weight", "text_head.weight") if config.keeps_rows else ()
    decayed = [p for name, p in named if p.ndim >= 2 and name not in kept]
    others = [p for name, p in named if p.ndim < 2 or name in kept]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [{**group, "peak": rate} for group in groups if group["params"]]


def rate_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0) as a share of the peak: linear warm-up, then the schedule."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    final = config.final_rate
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            left = (config.steps - step) / max(1.0, config.decay * config.steps)
            return final + (1 - final) * min(1.0, max(0.0, left))
        case "cosine":
            done = (step - config.warmup) / max(1, config.steps - config.warmup)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case _:
            assert_never(config.schedule)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate = its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


class EMA:
    """Exponential moving average of what is trained, fp32; decay min(0.9999, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: p.detach().float().clone() for name, p in _trained(model)}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move toward the model's weights."""
        decay = min(0.9999, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [p.detach().float() for _, p in _trained(model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
