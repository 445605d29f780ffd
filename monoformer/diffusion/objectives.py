"""What the network is trained to predict, and what a prediction says about the clean image.

Images come as a list with one tensor (N, C, h, w) a size, times as a list of (N,), so that one pass of the network can
hold pictures of many sizes. Knows nothing of tokens or of the network: `predict` is a function. Arithmetic is fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.schedules import T_MIN, Path, build_path, expand

Images: TypeAlias = Sequence[Tensor]
Predict: TypeAlias = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""predict(x_t, t) -> what the image head returns for each image."""


class Estimate(NamedTuple):
    """What a denoiser says at (x, t): the clean image, and where a learned variance lies between its bounds."""

    x_0: Tensor
    variance_fraction: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """Noise an image, ask for a prediction, weigh the error (MonoFormer section 3.2, Transfusion section 2.2)."""

    config: DiffusionConfig
    path: Path

    def loss(self, predict: Predict, x_0: Images, t: Images, noise: Images) -> list[Tensor]:
        """Loss of each image, (N,) a size. `predict` is called once, with every noised image."""
        x_t = [self.noised(x, time, e) for x, time, e in zip(x_0, t, noise, strict=True)]
        predictions = predict(x_t, list(t))
        return [
            self.error(prediction.float(), x, time, e)
            for prediction, x, time, e in zip(predictions, x_0, t, noise, strict=True)
        ]

    def noised(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise."""
        return expand(self.path.alpha(t), x_0) * x_0 + expand(self.path.sigma(t), x_0) * noise

    def error(self, prediction: Tensor, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of each image (N,), in the units of a velocity for both flow predictions."""
        match self.config:
            case FlowConfig(prediction="velocity"):
                return (prediction - (noise - x_0)).square().flatten(1).mean(1)
            case FlowConfig(prediction="x_0"):
                # v = (x_t - x_0) / t, so an error in x_0 is t times an error in v
                return (prediction - x_0).square().flatten(1).mean(1) / t.clamp(min=T_MIN).square()
            case DDPMConfig(prediction="eps"):
                return (prediction - noise).square().flatten(1).mean(1)
            case _:
                raise AssertionError(self.config)

    def estimate(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """The clean image that a prediction (N, C, h, w) at x_t and t (N,) implies."""
        prediction, x_t = prediction.float(), x_t.float()
        match self.config:
            case FlowConfig(prediction="velocity"):
                return Estimate(x_t - expand(t, x_t) * prediction)
            case FlowConfig(prediction="x_0"):
                return Estimate(prediction)
            case DDPMConfig(prediction="eps"):
                alpha, sigma = expand(self.path.alpha(t), x_t), expand(self.path.sigma(t), x_t)
                return Estimate((x_t - sigma * prediction) / alpha)
            case _:
                raise AssertionError(self.config)


def build_objective(config: DiffusionConfig) -> Objective:
    """The objective of a configuration."""
    return Objective(config, build_path(config))


def flatten_losses(losses: Sequence[Tensor], device: torch.device) -> Tensor:
    """All images' losses in one vector (N,), empty when there is no image."""
    return torch.cat([*losses, torch.zeros(0, device=device)])
