"""Objectives: a perfect prediction has no loss and implies the image, over everything that can be predicted."""

import typing

import pytest
import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.diffusion.objectives import Objective, build_objective, flatten_losses
from monoformer.randomness import generator

CONFIGS: dict[str, DiffusionConfig] = {
    "velocity": FlowConfig(prediction="velocity"),
    "x_0": FlowConfig(prediction="x_0"),
    **{
        f"{betas} {prediction} {variance}": DDPMConfig(betas=betas, prediction=prediction, variance=variance)
        for betas in typing.get_args(DDPMConfig.__annotations__["betas"])
        for prediction in typing.get_args(DDPMConfig.__annotations__["prediction"])
        for variance in ("fixed_small", "learned")
    },
    "short": DDPMConfig(steps=100),
}


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


def perfect(objective: Objective, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What a network that knows x_0 and the noise would say; with a learned variance, that it is the lower bound."""
    alpha, sigma = (share(t)[:, None, None, None] for share in (objective.path.alpha, objective.path.sigma))
    match objective.config.prediction:
        case "velocity":
            prediction = noise - x_0
        case "x_0":
            prediction = x_0
        case "eps":
            prediction = noise
        case "v":
            prediction = alpha * noise - sigma * x_0
    return torch.cat([prediction, -torch.ones_like(x_0)], dim=1) if objective.learned else prediction


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
            estimate = objective.estimate(perfect(objective, clean, time, e), x, time)
            torch.testing.assert_close(estimate.x_0, clean, rtol=1e-3, atol=1e-3)
            if objective.learned:
                assert torch.equal(estimate.variance_fraction, torch.zeros_like(clean))
            else:
                assert estimate.variance_fraction is None
        return [perfect(objective, *parts) for parts in zip(x_0, times, noise, strict=True)]

    losses = objective.loss(predict, x_0, t, noise)
    assert calls == 1
    assert [loss.shape for loss in losses] == [(5,), (2,)]
    first = 1 if objective.learned else 0  # index 0 of the bound is the decoder's: even the true image has no loss 0
    if objective.learned:
        assert float(losses[0][0]) > 0.1
    assert float(losses[0][first:].abs().max()) < 1e-5
    assert float(losses[1].abs().max()) < 1e-5


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
    clamped = build_objective(FlowConfig(prediction="x_0", clamp_time=0.4))
    expected = off.square().flatten(1).mean(1) / torch.tensor([0.4, 0.4, 0.4, 0.5, 0.9, 1.0]).square()
    torch.testing.assert_close(clamped.error(guess, x_0, t, noise), expected)


def test_no_image_at_all_has_an_empty_loss() -> None:
    empty = torch.zeros(0, 3, 4, 4)
    for config in CONFIGS.values():
        objective = build_objective(config)
        answer = empty.repeat(1, 2, 1, 1) if objective.learned else empty
        losses = objective.loss(lambda x_t, t, answer=answer: [answer], [empty], [torch.zeros(0)], [empty])
        assert flatten_losses(losses, torch.device("cpu")).shape == (0,)
    assert flatten_losses([], torch.device("cpu")).shape == (0,)
