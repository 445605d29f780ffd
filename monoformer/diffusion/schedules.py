"""Noise paths: how much image and how much noise there is at time t, and at which times to train and to sample.

The only place that converts time. Everywhere else t runs from 0 (clean) to 1 (noise). Invariant: x_t = alpha(t) x_0 +
sigma(t) noise, and both are fp32.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig

T_MIN = 0.05
"""Smallest t by which an x_0 error is divided to become a velocity error, in the loss and in the samplers."""


class Level(NamedTuple):
    """One noise level of a sampling grid: x = alpha x_0 + sigma noise at time t."""

    t: float
    alpha: float
    sigma: float


CLEAN = Level(0.0, 1.0, 0.0)
"""Where every sampling grid ends; never shown to the network."""


class Path(Protocol):
    """A noise path."""

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the image at t, same shape."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at t, same shape."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """What the network's time embedding receives for t."""
        ...

    def training_times(self, uniform: Tensor, *, maximum: Tensor | float = 1.0) -> Tensor:
        """Training times (N,) up to `maximum` ((N,) or one for all) from uniform numbers (N,) in [0, 1)."""
        ...

    def latest(self, share: Tensor) -> Tensor:
        """The last time within a share of the noise levels, same shape."""
        ...

    def levels(self, steps: int) -> list[Level]:
        """A sampling grid of `steps` evaluations, from noise down, closed by CLEAN."""
        ...


@dataclass(frozen=True)
class FlowPath:
    """The straight path of flow matching: alpha = 1 - t, sigma = t; logit-normal training times (SD3, section 3.1)."""

    config: FlowConfig

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def network_time(self, t: Tensor) -> Tensor:
        """1000 t: a sinusoid of numbers in [0, 1] is nearly constant."""
        return 1000 * t

    def training_times(self, uniform: Tensor, *, maximum: Tensor | float = 1.0) -> Tensor:
        """sigmoid of a normal with the configured mean and deviation, by inverse transform, cut off at `maximum`."""
        mean, deviation = self.config.time_mean, self.config.time_deviation
        limit = torch.as_tensor(maximum, dtype=torch.float64, device=uniform.device)
        share = torch.special.ndtr((torch.logit(limit) - mean) / deviation)
        normal = torch.special.ndtri(share * uniform.double().clamp(1e-6, 1 - 1e-6)).float()
        return torch.minimum(torch.sigmoid(mean + deviation * normal), limit.float())

    def latest(self, share: Tensor) -> Tensor:
        """t itself."""
        return share

    def levels(self, steps: int) -> list[Level]:
        """Evenly spaced from 1 down; the last evaluation is at 1 / steps."""
        times = [1 - i / steps for i in range(steps)]
        return [Level(t, 1 - t, t) for t in times] + [CLEAN]


class DDPMPath:
    """The variance-preserving chain of DDPM; t = index / (steps - 1), so t = 0 is the first noise level, index 0."""

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config
        steps = config.steps
        match config.betas:
            case "linear":  # DDPM section 4, rescaled for other numbers of steps as in ADM
                scale = 1000 / steps
                betas = torch.linspace(scale * 1e-4, scale * 2e-2, steps, dtype=torch.float64)
            case "cosine":  # improved DDPM (arXiv 2102.09672), equation 17
                u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
                bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
                betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
            case _:
                assert_never(config.betas)
        self.alpha_bar = torch.cumprod(1 - betas, dim=0).float()  # (steps,)

    def index(self, t: Tensor) -> Tensor:
        """The chain's integer index of t, same shape."""
        return (t * (self.config.steps - 1)).round().long()

    def alpha(self, t: Tensor) -> Tensor:
        """Square root of the cumulative product of 1 - beta."""
        return self.alpha_bar.to(t.device)[self.index(t)].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Square root of one minus that product."""
        return (1 - self.alpha_bar.to(t.device)[self.index(t)]).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """The integer index, as a float."""
        return self.index(t).float()

    def training_times(self, uniform: Tensor, *, maximum: Tensor | float = 1.0) -> Tensor:
        """Every index whose time is at most `maximum` equally often."""
        last = self.config.steps - 1
        limit = torch.as_tensor(maximum, dtype=torch.float64, device=uniform.device)
        count = (limit * last + 1e-9).floor() + 1
        index = torch.minimum((uniform.double() * count).floor(), count - 1)
        return (index / last).float()

    def latest(self, share: Tensor) -> Tensor:
        """Index 500 of 1000 for one half: the papers' t <= 500 is the chain's index, ours is index / 999."""
        steps = self.config.steps
        return (share.double() * steps).round().clamp(max=steps - 1) / (steps - 1)

    def levels(self, steps: int) -> list[Level]:
        """Indices evenly spaced from the last down to 0, both evaluated."""
        if steps > self.config.steps:
            raise ValueError(f"a DDPM chain of {self.config.steps} levels cannot be sampled in {steps} steps")
        t = torch.linspace(1, 0, steps) if steps > 1 else torch.ones(1)
        t = self.index(t).double() / (self.config.steps - 1)
        return [*map(Level, t.tolist(), self.alpha(t).tolist(), self.sigma(t).tolist()), CLEAN]


def build_path(config: DiffusionConfig) -> Path:
    """The path of a configuration."""
    match config:
        case FlowConfig():
            return FlowPath(config)
        case DDPMConfig():
            return DDPMPath(config)
        case _:
            assert_never(config)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t (N,) with trailing axes, so that it multiplies `like` (N, ...)."""
    return t.view(-1, *([1] * (like.ndim - 1)))
