"""Samplers as generators: each yields `(x, t)`, is sent an `Estimate`, and returns the clean image.

They know a grid of noise levels and nothing else of the model; `drive` runs one, an engine may run many side by side
(DESIGN 1, third sentence). Guidance is never inside a sampler; noise comes from the generator that each is given, so
a picture does not depend on its neighbours. Arithmetic on images is fp32, on levels fp64.
"""

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from monoformer.config.diffusion import SamplerName, Variance
from monoformer.diffusion.objectives import Estimate
from monoformer.diffusion.schedules import CLEAN, T_MIN, Level

Sampler: TypeAlias = Generator[tuple[Tensor, float], Estimate, Tensor]
Denoise: TypeAlias = Callable[[Tensor, float], Estimate]


def drive(sampler: Sampler, denoise: Denoise) -> Tensor:
    """Run one sampler to its end with `denoise(x, t)`; the clean image."""
    try:
        x, t = next(sampler)
        while True:
            x, t = sampler.send(denoise(x, t))
    except StopIteration as stop:
        result: Tensor = stop.value
        return result


def euler(x: Tensor, levels: Sequence[Level]) -> Sampler:
    """First order along the flow's velocity (x - x_0) / t; the last step lands on x_0 itself."""
    for level, following in pairwise(levels):
        x_0 = (yield x, level.t).x_0
        x = _along(x, x_0, level, following)
    return x


def heun(x: Tensor, levels: Sequence[Level]) -> Sampler:
    """Second order (trapezium rule, EDM algorithm 1 without churn): two evaluations a step, one in the last."""
    for level, following in pairwise(levels):
        x_0 = (yield x, level.t).x_0
        guess = _along(x, x_0, level, following)
        if following.t == 0:
            return guess
        x_0_there = (yield guess, following.t).x_0
        velocity = (_velocity(x, x_0, level) + _velocity(guess, x_0_there, following)) / 2
        x = x + (following.t - level.t) * velocity
    return x


def ddim(x: Tensor, levels: Sequence[Level], *, eta: float = 0.0, random: torch.Generator | None = None) -> Sampler:
    """DDIM (arXiv 2010.02502, equations 12 and 16) on any alpha-sigma path; deterministic where eta is 0."""
    for level, following in pairwise(levels):
        x_0 = (yield x, level.t).x_0
        eps = (x - level.alpha * x_0) / level.sigma
        if eta == 0 or following == CLEAN:
            x = following.alpha * x_0 + following.sigma * eps
            continue
        fresh = eta * math.sqrt(_small(level, following))
        kept = math.sqrt(max(0.0, following.sigma**2 - fresh**2))
        x = following.alpha * x_0 + kept * eps + fresh * _noise(x, random)
    return x


def ddpm(x: Tensor, levels: Sequence[Level], *, variance: Variance, random: torch.Generator | None) -> Sampler:
    """Ancestral sampling (DDPM, algorithm 2) with the betas of the grid's own spacing; the last step is without noise.

    A learned variance lies at the estimate's fraction between the logarithms of the spaced bounds.
    """
    for level, following in pairwise(levels):
        x_0, fraction = yield x, level.t
        if following == CLEAN:
            return x_0
        small, large = _small(level, following), _large(level, following)
        kept = level.alpha / following.alpha * following.sigma**2 / level.sigma**2
        x = kept * x + following.alpha * large / level.sigma**2 * x_0
        noise = _noise(x, random)
        match variance:
            case "fixed_small":
                x = x + math.sqrt(small) * noise
            case "fixed_large":
                x = x + math.sqrt(large) * noise
            case "learned":
                assert fraction is not None, "a model with learned variance says where it lies"
                x = x + math.sqrt(small) * torch.exp(0.5 * math.log(large / small) * fraction) * noise
            case _:
                assert_never(variance)
    return x


def dpm_solver(x: Tensor, levels: Sequence[Level]) -> Sampler:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2); the first and the last step are of first order."""
    before: Tensor | None = None
    step_before = 0.0
    for level, following in pairwise(levels):
        x_0 = (yield x, level.t).x_0
        if following == CLEAN:
            return x_0
        step = _log_ratio(following) - _log_ratio(level)
        ahead = x_0 if before is None else x_0 + step / (2 * step_before) * (x_0 - before)
        x = following.sigma / level.sigma * x - following.alpha * math.expm1(-step) * ahead
        before, step_before = x_0, step
    return x


def build_sampler(
    name: SamplerName,
    x: Tensor,
    levels: Sequence[Level],
    *,
    eta: float = 0.0,
    variance: Variance = "fixed_small",
    random: torch.Generator | None = None,
) -> Sampler:
    """The named sampler, started at x (noise), over a grid of levels.

    `eta` is ddim's and `variance` ddpm's; both of these draw from `random`, a CPU generator, in every step.
    """
    match name:
        case "euler":
            return euler(x, levels)
        case "heun":
            return heun(x, levels)
        case "ddim":
            return ddim(x, levels, eta=eta, random=random)
        case "ddpm":
            return ddpm(x, levels, variance=variance, random=random)
        case "dpm++2m":
            return dpm_solver(x, levels)
        case _:
            assert_never(name)


def _large(level: Level, following: Level) -> float:
    """Noise that the chain adds from `following` to `level`: the grid's beta, the upper bound of a step's variance."""
    return level.sigma**2 - (level.alpha / following.alpha * following.sigma) ** 2


def _small(level: Level, following: Level) -> float:
    """Variance of the step back when x_0 is known: the lower bound."""
    return _large(level, following) * (following.sigma / level.sigma) ** 2


def _log_ratio(level: Level) -> float:
    """log(alpha / sigma), half the log signal-to-noise ratio; minus infinity for pure noise."""
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def _noise(x: Tensor, random: torch.Generator | None) -> Tensor:
    assert random is not None, "a sampler that adds noise needs a generator"
    return torch.randn(x.shape, generator=random).to(x)


def _velocity(x: Tensor, x_0: Tensor, level: Level) -> Tensor:
    return (x - x_0) / max(level.t, T_MIN)


def _along(x: Tensor, x_0: Tensor, level: Level, following: Level) -> Tensor:
    # at t < T_MIN the clamped velocity would stop short of x_0; the last step of the exact one ends there
    if following.t == 0:
        return x_0
    return x + (following.t - level.t) * _velocity(x, x_0, level)
