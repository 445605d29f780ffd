"""What the network is trained to predict, and what a prediction says about the clean image.

Images come as a list with one tensor (N, C, h, w) a size, times as a list of (N,), so that one pass of the network can
hold pictures of many sizes. Knows nothing of tokens or of the network: `predict` is a function. Arithmetic is fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, assert_never

import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig, Variance
from monoformer.diffusion.schedules import DDPMPath, Path, build_path, expand
from monoformer.diffusion.variational import Posterior

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
    learned: Posterior | None = None
    """The chain's posterior, where the prediction (N, 2 C, h, w) ends with a learned variance."""

    @property
    def variance(self) -> Variance:
        """Variance of the sampler ddpm; a flow has no such sampler."""
        return self.config.variance if isinstance(self.config, DDPMConfig) else "fixed_small"

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

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should say (N, C, h, w), the variance aside."""
        match self.config.prediction:
            case "velocity":
                return noise - x_0
            case "x_0":
                return x_0
            case "eps":
                return noise
            case "v":
                return expand(self.path.alpha(t), x_0) * noise - expand(self.path.sigma(t), x_0) * x_0
            case _:
                assert_never(self.config.prediction)

    def error(self, prediction: Tensor, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Loss of each image (N,): the mean squared error, a flow's in the units of a velocity.

        A learned variance adds 0.001 times the variational bound, a sum over the chain of which t is a sample
        (improved DDPM, equation 16); the bound is not to move the mean, which is detached.
        """
        guess, values = self._parts(prediction)
        loss = (guess - self.target(x_0, t, noise)).square().flatten(1).mean(1)
        if isinstance(self.config, FlowConfig) and self.config.prediction == "x_0":
            # v = (x_t - x_0) / t, so an error in x_0 is t times an error in v
            loss = loss / t.clamp(min=self.config.clamp_time).square()
        if self.learned is not None and values is not None:
            assert isinstance(self.path, DDPMPath)
            x_t, index = self.noised(x_0, t, noise), self.path.index(t)
            mean = self._clean(guess.detach(), x_t, t)
            bound = self.learned.bound(x_0, x_t, index, guess=mean, fraction=_fraction(values))
            loss = loss + 0.001 * len(self.path.alpha_bar) * bound
        return loss

    def estimate(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """The clean image, and the variance's fraction, that a prediction at x_t and t (N,) implies."""
        guess, values = self._parts(prediction.float())
        return Estimate(self._clean(guess, x_t.float(), t), None if values is None else _fraction(values))

    def _parts(self, prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction proper, and the values of a learned variance, about in [-1, 1]."""
        if self.learned is None:
            return prediction, None
        guess, values = prediction.chunk(2, dim=1)
        return guess, values

    def _clean(self, guess: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        match self.config.prediction:
            case "velocity":
                return x_t - expand(t, x_t) * guess
            case "x_0":
                return guess
            case "eps":
                return (x_t - expand(self.path.sigma(t), x_t) * guess) / expand(self.path.alpha(t), x_t)
            case "v":
                return expand(self.path.alpha(t), x_t) * x_t - expand(self.path.sigma(t), x_t) * guess
            case _:
                assert_never(self.config.prediction)


def build_objective(config: DiffusionConfig) -> Objective:
    """The objective of a configuration."""
    match path := build_path(config):
        case DDPMPath(config=DDPMConfig(variance="learned")):
            return Objective(config, path, Posterior(path.alpha_bar))
        case _:
            return Objective(config, path)


def flatten_losses(losses: Sequence[Tensor], device: torch.device) -> Tensor:
    """All images' losses in one vector (N,), empty when there is no image."""
    return torch.cat([*losses, torch.zeros(0, device=device)])


def _fraction(values: Tensor) -> Tensor:
    return (values + 1) / 2
