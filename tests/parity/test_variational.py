"""The variational bound: against the official code's recorded terms, and against integrals in double precision."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig
from monoformer.diffusion.objectives import Objective, build_objective
from monoformer.diffusion.schedules import DDPMPath
from monoformer.diffusion.variational import Posterior, normal_share
from monoformer.randomness import generator

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "official-tiny" / "expected.safetensors"

LEARNED = DDPMConfig(variance="learned")


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


def parts(config: DDPMConfig) -> tuple[Objective, DDPMPath, Posterior]:
    objective = build_objective(config)
    assert isinstance(objective.path, DDPMPath)
    assert objective.learned is not None
    return objective, objective.path, objective.learned


# --- the official code ---


@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"the recorded terms are not here: no file {FIXTURE}")
def test_terms_and_posterior_are_those_of_the_official_code() -> None:
    recorded = load_file(FIXTURE)
    x_0, noise, output, index = (recorded[f"loss.{name}"] for name in ("x_0", "noise", "model_output", "t"))
    objective, path, posterior = parts(LEARNED)
    t = (index / 999).float()
    assert torch.equal(path.index(t), index)
    x_t = objective.noised(x_0, t, noise)
    estimate = objective.estimate(output, recorded["loss.x_t"], t)
    assert estimate.variance_fraction is not None
    guess, fraction = estimate.x_0, estimate.variance_fraction
    squared = (output[:, :4] - noise).square().flatten(1).mean(1)
    found = {
        "loss.x_t": x_t,
        "loss.mse": squared,
        "loss.vb": posterior.bound(x_0, x_t, index, guess=guess, fraction=fraction),
        "loss.total": objective.error(output, x_0, t, noise),
        "posterior.pred_x0": guess,
        "posterior.mean": posterior.mean(guess, recorded["loss.x_t"], index),
        "posterior.log_variance": posterior.log_variance(fraction, index),
    }
    for name, value in found.items():
        scale = float(recorded[name].abs().max())
        torch.testing.assert_close(
            value, recorded[name], rtol=0, atol=1e-5 * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


# --- double precision ---

X_0, X_T, GUESS, FRACTION = -0.37, 0.61, -0.2, 0.3


def chain(betas: str) -> NDArray[np.float64]:
    """The betas, straight from the papers."""
    if betas == "linear":
        return np.linspace(1e-4, 0.02, 1000)
    level = [math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(1001)]
    return np.array([min(1 - after / before, 0.999) for before, after in pairwise(level)])


def step_back(betas: NDArray[np.float64], index: int, x_0: float) -> tuple[float, float]:
    """Mean and variance of x_{t-1} given x_t = X_T and x_0, by Bayes' rule from the two normal factors."""
    before, beta = float(np.prod(1 - betas[:index])), float(betas[index])
    precision = 1 / (1 - before) + (1 - beta) / beta
    mean = (math.sqrt(before) * x_0 / (1 - before) + math.sqrt(1 - beta) * X_T / beta) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("index", [1, 2, 30, 400, 998, 999])
@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_the_bound_is_the_integral_that_it_stands_for(betas: Any, index: int) -> None:
    integrate, stats = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.stats")
    numbers = chain(betas)
    mean, variance = step_back(numbers, index, X_0)
    guessed, _ = step_back(numbers, index, GUESS)
    between = math.exp(FRACTION * math.log(numbers[index]) + (1 - FRACTION) * math.log(variance))
    truth, model = stats.norm(mean, math.sqrt(variance)), stats.norm(guessed, math.sqrt(between))
    reach = 12 * math.sqrt(variance)
    nats, _ = integrate.quad(
        lambda x: truth.pdf(x) * (truth.logpdf(x) - model.logpdf(x)), mean - reach, mean + reach,
        epsabs=1e-13, epsrel=1e-10, limit=200,
    )  # fmt: skip
    found = bound(DDPMConfig(betas=betas, variance="learned"), index)
    # fp32 keeps 1 - alpha_bar and the means to 6e-8; a divergence near 0 is a difference of numbers near 1
    assert found == pytest.approx(nats / math.log(2), rel=1e-4, abs=3e-7)


@pytest.mark.parametrize("x_0", [-1.0, X_0, 1.0, 2.5])
def test_the_decoder_is_the_probability_of_a_bin(x_0: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    betas = chain("linear")
    guess = min(max(x_0, -1), 1) + 0.004
    _, lower = step_back(betas, 1, 0.0)  # the lower bound at index 0 is that of index 1
    deviation = math.sqrt(math.exp(FRACTION * math.log(betas[0]) + (1 - FRACTION) * math.log(lower)))
    model = stats.norm(guess, deviation)  # at index 0 the mean is the guess itself
    above = 1.0 if x_0 > 0.999 else model.cdf(x_0 + 1 / 255)
    below = 0.0 if x_0 < -0.999 else model.cdf(x_0 - 1 / 255)
    found = bound(LEARNED, 0, x_0=x_0, guess=guess)
    exact = -math.log2(max(above - below, 1e-12))
    assert found == pytest.approx(exact, abs=2e-3), "off only by the formula for the normal distribution"


def test_the_formula_for_the_normal_distribution_is_close() -> None:
    z = torch.linspace(-9, 9, 4001)
    assert float((normal_share(z) - torch.special.ndtr(z)).abs().max()) < 3e-4


def bound(config: DDPMConfig, index: int, *, x_0: float = X_0, guess: float = GUESS) -> float:
    """Our bound for images of equal numbers."""
    _, _, posterior = parts(config)
    image = torch.ones(1, 2, 3, 3)
    found = posterior.bound(
        x_0 * image, X_T * image, torch.tensor([index]), guess=guess * image, fraction=FRACTION * image
    )
    return float(found)


# --- the hybrid loss ---


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize("steps", [1000, 200])
def test_the_hybrid_loss_is_the_simple_one_plus_a_thousandth_of_the_bound(prediction: Any, steps: int) -> None:
    config = DDPMConfig(steps=steps, prediction=prediction, variance="learned")
    objective, path, posterior = parts(config)
    simple = build_objective(DDPMConfig(steps=steps, prediction=prediction))
    x_0, noise, output = normal(5, 3, 4, 4, key="x_0"), normal(5, 3, 4, 4), normal(5, 6, 4, 4, key="output")
    index = torch.tensor([0, 1, 50, 120, steps - 1])
    t = index / (steps - 1)
    x_t = objective.noised(x_0, t, noise)
    estimate = objective.estimate(output, x_t, t)
    assert estimate.variance_fraction is not None
    terms = posterior.bound(x_0, x_t, path.index(t), guess=estimate.x_0, fraction=estimate.variance_fraction)
    expected = simple.error(output[:, :3], x_0, t, noise) + 0.001 * steps * terms
    torch.testing.assert_close(objective.error(output, x_0, t, noise), expected)
    assert (terms > 0).all()


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_the_bound_moves_the_variance_and_never_the_mean(prediction: Any) -> None:
    objective, _, _ = parts(DDPMConfig(prediction=prediction, variance="learned"))
    simple = build_objective(DDPMConfig(prediction=prediction))
    x_0, noise, t = normal(4, 3, 4, 4, key="x_0"), normal(4, 3, 4, 4), torch.tensor([0.0, 1 / 999, 0.4, 1.0])
    output = normal(4, 6, 4, 4, key="output").requires_grad_()
    objective.error(output, x_0, t, noise).sum().backward()
    alone = output.detach()[:, :3].requires_grad_()
    simple.error(alone, x_0, t, noise).sum().backward()
    assert output.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(output.grad[:, :3], alone.grad)
    moved = output.grad[:, 3:].abs().flatten(1).amax(1)
    assert (moved > 0).all()
    assert moved.isfinite().all()
