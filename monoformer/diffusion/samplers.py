"""Samplers as generators: each yields `(x, t)`, is sent an `Estimate`, and returns the clean image.

They know a grid of noise levels and nothing else of the model; `drive` runs one, an engine may run many side by side
(DESIGN 1, third sentence). Guidance is never inside a sampler. Arithmetic is fp32.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, assert_never

from torch import Tensor

from monoformer.diffusion.objectives import Estimate
from monoformer.diffusion.schedules import T_MIN, Level

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


def ddim(x: Tensor, levels: Sequence[Level]) -> Sampler:
    """Deterministic DDIM (arXiv 2010.02502, equation 12, eta = 0) on any alpha-sigma path."""
    for level, following in pairwise(levels):
        x_0 = (yield x, level.t).x_0
        eps = (x - level.alpha * x_0) / level.sigma
        x = following.alpha * x_0 + following.sigma * eps
    return x


def build_sampler(name: Literal["euler", "heun", "ddim"], x: Tensor, levels: Sequence[Level]) -> Sampler:
    """The named sampler, started at x (noise), over a grid of levels."""
    match name:
        case "euler":
            return euler(x, levels)
        case "heun":
            return heun(x, levels)
        case "ddim":
            return ddim(x, levels)
        case _:
            assert_never(name)


def _velocity(x: Tensor, x_0: Tensor, level: Level) -> Tensor:
    return (x - x_0) / max(level.t, T_MIN)


def _along(x: Tensor, x_0: Tensor, level: Level, following: Level) -> Tensor:
    # at t < T_MIN the clamped velocity would stop short of x_0; the last step of the exact one ends there
    if following.t == 0:
        return x_0
    return x + (following.t - level.t) * _velocity(x, x_0, level)
