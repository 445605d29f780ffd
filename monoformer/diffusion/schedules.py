"""Noise paths: how much image and how much noise there is at time t, and at which times to train and to sample.

The only place that converts time. Everywhere else t runs from 0 (clean) to 1 (noise). Invariant: x_t = alpha(t) x_0 +
sigma(t) noise, and both are fp32.
"""

import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, assert_never

import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig, Spacing

Number = TypeVar("Number", Tensor, float)

T_MIN = 0.05
"""Smallest t by which samplers divide an x_0 error to make it a velocity's (the loss: `FlowConfig.clamp_time`)."""

ALPHA_MIN = 0.015
"""Smallest share of the image at which a sampler reads eps on a cosine chain, which ends at 0.00005 (the linear one at
0.006): x_0 = (x_t - sigma eps) / alpha multiplies an error of eps by 1 / alpha (measured in docs/decisions.md)."""

UNTRAINED = 0.0002
"""Share of a flow's training times that are too few to learn from: what a network says of x_0 there is a guess, and the
last thing that it says is the picture (measured in docs/decisions.md)."""


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

    def training_times(self, uniform: Tensor, *, positions: int = 0, maximum: Tensor | float = 1.0) -> Tensor:
        """Training times (N,) up to `maximum` ((N,) or one for all) from uniform numbers (N,) in [0, 1)."""
        ...

    def latest(self, share: Tensor) -> Tensor:
        """The last time within a share of the noise levels, same shape."""
        ...

    def levels(self, steps: int, *, spacing: Spacing = "uniform", positions: int = 0) -> list[Level]:
        """A sampling grid of `steps` evaluations, from noise down, closed by CLEAN.

        `positions` is the latent's height times width; only a path that shifts times by resolution needs it.
        """
        ...

    def nearest(self, t: float, *, positions: int = 0) -> Level:
        """The level nearest to t at which a sampler may ask the network; `positions` as for `levels`."""
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

    def training_times(self, uniform: Tensor, *, positions: int = 0, maximum: Tensor | float = 1.0) -> Tensor:
        """sigmoid of a normal with the configured mean and deviation, by inverse transform, cut off at `maximum`."""
        mean, deviation = self.config.time_mean, self.config.time_deviation
        limit, shift = torch.as_tensor(maximum, dtype=torch.float64, device=uniform.device), self._shift(positions)
        unshifted = _shifted(limit, 1 / shift).clamp(max=1.0)  # the last bit may lie above 1, whose logit is none
        share = torch.special.ndtr((torch.logit(unshifted) - mean) / deviation)
        normal = torch.special.ndtri(share * uniform.double().clamp(1e-6, 1 - 1e-6)).float()
        return torch.minimum(_shifted(torch.sigmoid(mean + deviation * normal), shift), limit.float())

    def latest(self, share: Tensor) -> Tensor:
        """t itself."""
        return share

    def levels(self, steps: int, *, spacing: Spacing = "uniform", positions: int = 0) -> list[Level]:
        """From 1 down, spaced and then shifted; the last evaluation of a uniform grid is at 1 / steps.

        A network that predicts x_0 is not asked below the times that it was trained at, whatever the steps.
        """
        power, shift = 1 if spacing == "uniform" else 2, self._shift(positions)
        times = [(1 - i / steps) ** power for i in range(steps)]
        if self.config.prediction == "x_0" and times[-1] < (least := self._least()):
            times = [1 - (1 - t) * (1 - least) / (1 - times[-1]) for t in times]
        shifted = [min(1.0, _shifted(t, shift)) for t in times]  # the last bit may lie above 1
        return [Level(t, 1 - t, t) for t in shifted] + [CLEAN]

    def nearest(self, t: float, *, positions: int = 0) -> Level:
        """t itself, but for a network that predicts x_0 none below those that it was trained at."""
        t = max(t, _shifted(self._least(), self._shift(positions))) if self.config.prediction == "x_0" else t
        return Level(t, 1 - t, t)

    def _least(self) -> float:
        """The time below which a share of `UNTRAINED` of the training times lies."""
        normal = statistics.NormalDist(self.config.time_mean, self.config.time_deviation).inv_cdf(UNTRAINED)
        return 1 / (1 + math.exp(-normal))

    def _shift(self, positions: int) -> float:
        """sqrt(m / n) of SD3, equation 23."""
        if self.config.shift_base == 0:
            return 1.0
        assert positions > 0, "a path with shift_base needs the latent's height times width"
        return math.sqrt(positions / self.config.shift_base)


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
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)  # (steps,) fp64: in fp32, 1 - alpha_bar loses four digits

    def index(self, t: Tensor) -> Tensor:
        """The chain's integer index of t, same shape."""
        return (t * (self.config.steps - 1)).round().long()

    def alpha(self, t: Tensor) -> Tensor:
        """Square root of the cumulative product of 1 - beta."""
        return gather(self.alpha_bar.sqrt(), self.index(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Square root of one minus that product."""
        return gather((1 - self.alpha_bar).sqrt(), self.index(t))

    def network_time(self, t: Tensor) -> Tensor:
        """The integer index, as a float."""
        return self.index(t).float()

    def training_times(self, uniform: Tensor, *, positions: int = 0, maximum: Tensor | float = 1.0) -> Tensor:
        """Every index whose time is at most `maximum` equally often; the size of the image has no effect."""
        last = self.config.steps - 1
        limit = torch.as_tensor(maximum, dtype=torch.float64, device=uniform.device)
        count = (limit * last + 1e-9).floor() + 1
        index = torch.minimum((uniform.double() * count).floor(), count - 1)
        return (index / last).float()

    def latest(self, share: Tensor) -> Tensor:
        """Index 500 of 1000 for one half: the papers' t <= 500 is the chain's index, ours is index / 999."""
        steps = self.config.steps
        return (share.double() * steps).round().clamp(max=steps - 1) / (steps - 1)

    def levels(self, steps: int, *, spacing: Spacing = "uniform", positions: int = 0) -> list[Level]:
        """Indices from the first that a sampler should see down to 0, both evaluated; the size has no effect."""
        if steps > self.config.steps:
            raise ValueError(f"a DDPM chain of {self.config.steps} levels cannot be sampled in {steps} steps")
        first, power = self._first(steps), 1 if spacing == "uniform" else 2
        indices = [first]
        for i in reversed(range(steps - 1)):  # a crowded quadratic grid takes every index below where it crowds
            indices.append(max(i, round(first * i**power / (steps - 1) ** power)))
        return [*map(self._level, indices), CLEAN]

    def nearest(self, t: float, *, positions: int = 0) -> Level:
        """That of the nearest index."""
        return self._level(round(t * (self.config.steps - 1)))

    def _level(self, index: int) -> Level:
        bar = float(self.alpha_bar[index])
        return Level(index / (self.config.steps - 1), bar**0.5, (1 - bar) ** 0.5)

    def _first(self, steps: int) -> int:
        """Index at which sampling starts: the last one, but see ALPHA_MIN. So many steps as need them take all."""
        if self.config.betas != "cosine" or self.config.prediction != "eps":
            return self.config.steps - 1
        usable = int((self.alpha_bar >= ALPHA_MIN**2).sum())
        return max(usable, steps) - 1


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


def gather(table: Tensor, index: Tensor) -> Tensor:
    """The entries of an fp64 table (steps,) at integer indices, same shape as these, fp32 on their device."""
    return table.float().to(index.device)[index]


def _shifted(t: Number, shift: float) -> Number:
    """Times of an image whose noise hides sqrt(m / n) = `shift` times less of it; `1 / shift` is the way back."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)
