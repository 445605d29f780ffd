"""Schedules, objectives and samplers: closed forms, inverses, and diffusers' schedulers."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.objectives import Estimate, Objective, build_objective, flatten_losses
from monoformer.diffusion.samplers import build_sampler, ddim, drive
from monoformer.diffusion.schedules import CLEAN, DDPMPath, Level, build_path
from monoformer.randomness import generator

MEAN, DEVIATION = 0.7, 0.4

CONFIGS: dict[str, DiffusionConfig] = {
    "velocity": FlowConfig(prediction="velocity"),
    "x_0": FlowConfig(prediction="x_0"),
    "linear": DDPMConfig(betas="linear"),
    "cosine": DDPMConfig(betas="cosine"),
    "short": DDPMConfig(steps=100),
}


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


def best_denoiser(config: DiffusionConfig) -> Callable[[Tensor, float], Estimate]:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION^2)."""
    path = build_path(config)

    def denoise(x: Tensor, t: float) -> Estimate:
        time = torch.tensor([t])
        alpha, sigma = float(path.alpha(time)), float(path.sigma(time))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return Estimate(MEAN + gain * (x - alpha * MEAN))

    return denoise


def error(config: DiffusionConfig, sampler: Any, steps: int) -> float:
    """Largest distance from MEAN + DEVIATION * noise, where the exact flow takes noise."""
    noise = normal(4000)
    levels = build_path(config).levels(steps)
    found = drive(build_sampler(sampler, noise, levels), best_denoiser(config))
    return float((found - MEAN - DEVIATION * noise).abs().max()) / DEVIATION


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "tolerance"),
    [
        ("euler", "velocity", 20, 0.20),
        ("heun", "velocity", 20, 0.10),
        ("ddim", "velocity", 50, 0.10),
        ("ddim", "linear", 50, 0.20),
        ("ddim", "linear", 1000, 0.02),
        ("ddim", "cosine", 50, 0.20),
        ("ddim", "cosine", 1000, 0.02),
    ],
)
def test_samplers_recover_a_gaussian(sampler: Any, config: str, steps: int, tolerance: float) -> None:
    noise = normal(20_000)
    levels = build_path(CONFIGS[config]).levels(steps)
    found = drive(build_sampler(sampler, noise, levels), best_denoiser(CONFIGS[config]))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(DEVIATION, rel=tolerance)
    assert error(CONFIGS[config], sampler, steps) < 4 * tolerance


def test_more_steps_are_better_and_heun_is_better_than_euler() -> None:
    flow = CONFIGS["velocity"]
    for sampler in ("euler", "heun", "ddim"):
        errors = [error(flow, sampler, steps) for steps in (3, 6, 12)]
        assert errors[0] > errors[1] > errors[2]
    assert error(flow, "heun", 10) < 0.5 * error(flow, "euler", 10)


def test_on_the_straight_path_euler_is_ddim() -> None:
    noise, levels = normal(50), build_path(CONFIGS["x_0"]).levels(15)
    found = [drive(build_sampler(name, noise, levels), best_denoiser(CONFIGS["x_0"])) for name in ("euler", "ddim")]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_samplers_know_only_estimates(sampler: Any, steps: int) -> None:
    """They ask at falling noise levels above 0, ignore the variance, and land on a constant estimate."""
    levels = build_path(CONFIGS["x_0"]).levels(steps)
    target, asked = normal(2, 3, 4, key="target"), []
    for fraction in (None, torch.ones(2, 3, 4)):
        start, times = normal(2, 3, 4), []

        def denoise(x: Tensor, t: float, fraction: Tensor | None = fraction, times: list[float] = times) -> Estimate:
            assert x.shape == target.shape
            times.append(t)
            return Estimate(target, fraction)

        assert torch.equal(next(build_sampler(sampler, start, levels))[0], start)
        found = drive(build_sampler(sampler, start, levels), denoise)
        torch.testing.assert_close(found, target, rtol=0, atol=1e-6)
        asked.append(times)
    assert asked[0] == asked[1]
    assert asked[0][0] == 1
    assert all(0 < later <= earlier for earlier, later in pairwise(asked[0]))
    assert len(asked[0]) == (2 * steps - 1 if sampler == "heun" else steps)


# --- grids ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_grids_fall_from_noise_to_clean(name: str, steps: int) -> None:
    path = build_path(CONFIGS[name])
    levels = path.levels(steps)
    assert len(levels) == steps + 1
    assert levels[0].t == 1
    assert levels[-1] == CLEAN
    for before, after in pairwise(levels):
        assert before.t > after.t or after == CLEAN
        assert before.sigma > after.sigma
        assert before.alpha < after.alpha
    for level in levels[:-1]:
        t = torch.tensor([level.t])
        assert float(path.alpha(t)) == pytest.approx(level.alpha, abs=1e-6)
        assert float(path.sigma(t)) == pytest.approx(level.sigma, abs=1e-6)


def test_a_chain_cannot_be_sampled_in_more_steps_than_it_has() -> None:
    with pytest.raises(ValueError, match="chain of 100 levels cannot be sampled in 101 steps"):
        build_path(CONFIGS["short"]).levels(101)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 10, 100, 4000])
def test_every_chain_that_a_configuration_allows_is_one(steps: int, betas: Any) -> None:
    try:
        config = DDPMConfig(steps=steps, betas=betas)
    except ValueError:
        return  # refused: as good
    alpha_bar = DDPMPath(config).alpha_bar
    assert (alpha_bar > 0).all()
    assert (alpha_bar < 1).all()
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_training_times_are_in_range_and_the_network_sees_large_numbers(name: str) -> None:
    path = build_path(CONFIGS[name])
    uniform = torch.rand(4000, generator=generator(0, "uniform"), dtype=torch.float64)
    times = path.training_times(torch.cat([uniform, torch.tensor([0.0, 1 - 2**-53])]))
    assert times.dtype == torch.float32
    assert times.isfinite().all()
    assert float(times.min()) >= 0
    assert float(times.max()) <= 1
    seen = path.network_time(times)
    steps = getattr(CONFIGS[name], "steps", 1000)
    assert float(seen.max()) > 0.9 * steps
    assert float(seen.max()) <= steps
    assert float(path.network_time(torch.zeros(1))) == 0
    if isinstance(CONFIGS[name], DDPMConfig):
        counts = torch.bincount(seen.long(), minlength=steps)
        assert len(counts) == steps
        assert torch.equal(path.network_time(torch.arange(steps) / (steps - 1)), torch.arange(steps).float())
        assert float(seen.mean()) == pytest.approx((steps - 1) / 2, rel=0.05)
    else:
        normalised = torch.logit(times[:4000].double()) - 0.4
        assert float(normalised.mean()) == pytest.approx(0, abs=0.05)
        assert float(normalised.std()) == pytest.approx(1, abs=0.05)


# --- objectives ---


def perfect(objective: Objective, x_0: Tensor, noise: Tensor) -> Tensor:
    match objective.config:
        case FlowConfig(prediction="velocity"):
            return noise - x_0
        case FlowConfig():
            return x_0
        case DDPMConfig():
            return noise


@pytest.mark.parametrize("name", CONFIGS)
def test_perfect_predictions_have_no_loss_and_imply_the_image(name: str) -> None:
    objective = build_objective(CONFIGS[name])
    x_0, noise = [normal(5, 3, 4, 4, key="a"), normal(2, 3, 2, 6, key="b")], [normal(5, 3, 4, 4), normal(2, 3, 2, 6)]
    t = [torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9]), torch.tensor([0.25, 0.8])]
    calls = 0

    def predict(x_t: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        nonlocal calls
        calls += 1
        for x, time, clean, e in zip(x_t, times, x_0, noise, strict=True):
            alpha, sigma = objective.path.alpha(time), objective.path.sigma(time)
            expected = alpha[:, None, None, None] * clean + sigma[:, None, None, None] * e
            torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
            estimate = objective.estimate(perfect(objective, clean, e), x, time)
            torch.testing.assert_close(estimate.x_0, clean, rtol=1e-3, atol=1e-3)
            assert estimate.variance_fraction is None
        return [perfect(objective, clean, e) for clean, e in zip(x_0, noise, strict=True)]

    losses = objective.loss(predict, x_0, t, noise)
    assert calls == 1
    assert [loss.shape for loss in losses] == [(5,), (2,)]
    assert all(float(loss.abs().max()) < 1e-9 for loss in losses)


def test_the_loss_is_a_mean_over_each_image() -> None:
    objective = build_objective(FlowConfig(prediction="velocity"))
    x_0, noise, t = normal(2, 3, 4, 4, key="a"), normal(2, 3, 4, 4), torch.tensor([0.3, 0.9])
    wrong = noise - x_0 + torch.tensor([2.0, 3.0])[:, None, None, None]
    torch.testing.assert_close(objective.error(wrong, x_0, t, noise), torch.tensor([4.0, 9.0]))


def test_an_error_in_x_0_weighs_as_the_velocity_error_that_it_is() -> None:
    in_x_0, in_velocity = build_objective(CONFIGS["x_0"]), build_objective(CONFIGS["velocity"])
    x_0, noise, off = normal(6, 3, 4, 4, key="a"), normal(6, 3, 4, 4), normal(6, 3, 4, 4, key="off")
    t = torch.tensor([0.051, 0.1, 0.3, 0.5, 0.9, 1.0])
    time = t[:, None, None, None]
    x_t = in_x_0.noised(x_0, t, noise)
    guess = x_0 + off
    velocity = (x_t - guess) / time
    torch.testing.assert_close(in_velocity.estimate(velocity, x_t, t).x_0, guess, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        in_x_0.error(guess, x_0, t, noise), in_velocity.error(velocity, x_0, t, noise), rtol=1e-4, atol=1e-5
    )
    small = in_x_0.error(guess[:1], x_0[:1], torch.tensor([0.001]), noise[:1])
    torch.testing.assert_close(small, off[:1].square().flatten(1).mean(1) / 0.05**2)


def test_no_image_at_all_has_an_empty_loss() -> None:
    empty = torch.zeros(0, 3, 4, 4)
    for config in CONFIGS.values():
        losses = build_objective(config).loss(lambda x_t, t: x_t, [empty], [torch.zeros(0)], [empty])
        assert flatten_losses(losses, torch.device("cpu")).shape == (0,)
    assert flatten_losses([], torch.device("cpu")).shape == (0,)


# --- diffusers ---

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("betas", SCHEDULES)
def test_the_chain_is_that_of_diffusers(betas: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_schedule=SCHEDULES[betas], beta_start=1e-4, beta_end=2e-2
    )
    path = DDPMPath(DDPMConfig(betas=betas))
    torch.testing.assert_close(path.alpha_bar, theirs.alphas_cumprod, rtol=1e-4, atol=1e-5)
    x_0, noise, index = normal(4, 3, 2, 2, key="a"), normal(4, 3, 2, 2), torch.tensor([0, 10, 500, 999])
    ours = build_objective(DDPMConfig(betas=betas)).noised(x_0, index / 999, noise)
    torch.testing.assert_close(ours, theirs.add_noise(x_0, noise, index), rtol=1e-5, atol=1e-5)


def toy_eps(x: Tensor, index: int) -> Tensor:
    """Any function will do, if it is smooth."""
    return torch.tanh(0.8 * x + index / 1000) + 0.1


@pytest.mark.parametrize("betas", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ddim_is_that_of_diffusers(betas: Any, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_schedule=SCHEDULES[betas], beta_start=1e-4, beta_end=2e-2,
        clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    config = DDPMConfig(betas=betas)
    objective, path = build_objective(config), build_path(config)
    start = expected = normal(3, 4, 4)
    for index in theirs.timesteps:
        expected = theirs.step(toy_eps(expected, int(index)), index, expected, eta=0.0).prev_sample
    times = (theirs.timesteps / 999).double()
    levels = [*map(Level, times.tolist(), path.alpha(times).tolist(), path.sigma(times).tolist()), CLEAN]
    if steps == 1000:
        assert [level.t for level in path.levels(1000)] == pytest.approx([level.t for level in levels])
        levels = path.levels(1000)

    def denoise(x: Tensor, t: float) -> Estimate:
        return objective.estimate(toy_eps(x, round(999 * t)), x, torch.tensor([t]))

    found = drive(ddim(start, levels), lambda x, t: Estimate(denoise(x[None], t).x_0[0]))
    scale = float(expected.abs().max())
    # Their chain is a product in fp32, ours in fp64: at the cosine chain's last level, 2.4e-9, they differ by 2e-5.
    tolerance = 1e-4 if betas == "cosine" and steps == 1000 else 1e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
