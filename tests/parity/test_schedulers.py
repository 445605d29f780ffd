"""Our chains and samplers against diffusers' schedulers, noise for noise, to 1e-5 of the largest magnitude."""

from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, FlowConfig, SamplerName
from monoformer.diffusion.objectives import Estimate, Objective, build_objective
from monoformer.diffusion.samplers import build_sampler, drive
from monoformer.diffusion.schedules import CLEAN, DDPMPath, Level, build_path
from monoformer.randomness import generator

diffusers = pytest.importorskip("diffusers")

BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned": "learned_range"}


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


def scheduler(kind: str, config: DDPMConfig, **options: Any) -> Any:
    """Their scheduler of a configuration; its chain is their own, in fp64.

    Their fp32 product leaves 1 - alpha_bar with four digits at index 0 and alpha with five at the end of the cosine
    chain, which is more than the tolerance.
    """
    made = getattr(diffusers, kind)(
        num_train_timesteps=config.steps, beta_schedule=BETAS[config.betas], beta_start=1e-4, beta_end=2e-2,
        prediction_type=PREDICTIONS[config.prediction], **options,
    )  # fmt: skip
    betas = made.betas.double()
    if config.betas == "linear":
        betas = torch.linspace(1e-4, 2e-2, config.steps, dtype=torch.float64)
    made.betas, made.alphas = betas, 1 - betas
    made.alphas_cumprod = made.alphas.cumprod(0)
    return made


def toy(x: Tensor, time: float, *, learned: bool = False) -> Tensor:
    """Any network will do, if it is smooth; along the first axis its values of the variance follow."""
    prediction = torch.tanh(0.8 * x + time / 1000) + 0.1
    return torch.cat([prediction, torch.sin(3 * x)]) if learned else prediction


def ours(config: DDPMConfig, name: SamplerName, indices: list[int], start: Tensor, eta: float = 0.0) -> Tensor:
    """What our sampler makes of `start` (C, h, w) over the given indices of the chain; noise of the key "steps"."""
    objective = build_objective(config)
    assert isinstance(objective.path, DDPMPath)
    bars = [float(objective.path.alpha_bar[index]) for index in indices]
    last = config.steps - 1
    levels = [Level(i / last, bar**0.5, (1 - bar) ** 0.5) for i, bar in zip(indices, bars, strict=True)]
    random = generator(0, "steps")
    sampler = build_sampler(name, start, [*levels, CLEAN], eta=eta, variance=objective.variance, random=random)
    return drive(sampler, lambda x, t: denoise(objective, x, t, last))


def denoise(objective: Objective, x: Tensor, t: float, last: int) -> Estimate:
    prediction = toy(x, round(last * t), learned=objective.learned is not None)
    estimate = objective.estimate(prediction[None], x[None], torch.tensor([t]))
    return Estimate(*(None if part is None else part[0] for part in estimate))


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("betas", BETAS)
def test_the_chain_is_that_of_diffusers(betas: Any) -> None:
    config = DDPMConfig(betas=betas)
    theirs, path = scheduler("DDPMScheduler", config), DDPMPath(config)
    # the cosine betas come from them in fp32; relative to alpha_bar itself, so that its small end counts
    torch.testing.assert_close(path.alpha_bar, theirs.alphas_cumprod, rtol=2e-5, atol=0)
    x_0, noise, index = normal(4, 3, 2, 2, key="a"), normal(4, 3, 2, 2), torch.tensor([0, 10, 500, 999])
    found = build_objective(config).noised(x_0, index / 999, noise)
    assert_same(found, theirs.add_noise(x_0, noise, index))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(betas: Any, prediction: Any, eta: float, steps: int) -> None:
    config = DDPMConfig(betas=betas, prediction=prediction)
    theirs = scheduler("DDIMScheduler", config, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    theirs.set_timesteps(steps)
    start, random = normal(3, 4, 4), generator(0, "steps")
    expected = start.double()
    for index in theirs.timesteps:
        output = toy(expected, int(index)).float()
        expected = theirs.step(output, index, expected, eta=eta, generator=random).prev_sample
    assert_same(ours(config, "ddim", theirs.timesteps.tolist(), start, eta), expected)


CHAINS = [("linear", "eps"), ("cosine", "v"), ("linear", "x_0"), ("cosine", "eps")]


@pytest.mark.parametrize(
    ("betas", "prediction", "variance", "steps"),
    [
        *((*chain, variance, steps) for chain in CHAINS for variance in VARIANCES for steps in (10, 50)),
        *(("linear", "eps", "learned", 1000), ("cosine", "v", "fixed_small", 1000)),
    ],
)
def test_ddpm(betas: Any, prediction: Any, variance: Any, steps: int) -> None:
    config = DDPMConfig(betas=betas, prediction=prediction, variance=variance)
    theirs = scheduler(
        "DDPMScheduler", config, clip_sample=False, variance_type=VARIANCES[variance], timestep_spacing="linspace"
    )
    theirs.set_timesteps(steps)
    start, random = normal(3, 4, 4), generator(0, "steps")
    expected = start.double()
    for index in theirs.timesteps:
        output = toy(expected, int(index), learned=variance == "learned").float()  # their noise is of its type
        expected = theirs.step(output[None], index, expected[None], generator=random).prev_sample[0]
    assert_same(ours(config, "ddpm", theirs.timesteps.tolist(), start), expected)
    if (betas, prediction) != ("cosine", "eps"):  # that grid starts where eps can be read
        levels = build_path(config).levels(steps)[:-1]
        assert [round(999 * level.t) for level in levels] == theirs.timesteps.tolist()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_dpm_solver(betas: Any, prediction: Any, steps: int) -> None:
    config = DDPMConfig(betas=betas, prediction=prediction)
    theirs = scheduler(
        "DPMSolverMultistepScheduler", config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        final_sigmas_type="zero", timestep_spacing="linspace",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    start = normal(3, 4, 4)
    expected = start.double()
    for index in theirs.timesteps:
        expected = theirs.step(toy(expected, int(index)), index, expected).prev_sample
    assert_same(ours(config, "dpm++2m", theirs.timesteps.tolist(), start), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float) -> None:
    """Resolution-dependent shift, SD3 equation 23: 9 times the positions are a shift of 3."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    theirs.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
    objective = build_objective(FlowConfig(prediction="velocity", shift_base=100))
    levels = objective.path.levels(20, positions=round(100 * shift**2))
    assert [level.t for level in levels] == pytest.approx(theirs.sigmas.tolist())
    start = expected = normal(3, 4, 4)
    for time in theirs.timesteps:
        expected = theirs.step(toy(expected, float(time)), time, expected).prev_sample

    def guess(x: Tensor, t: float) -> Estimate:
        return Estimate(objective.estimate(toy(x, 1000 * t)[None], x[None], torch.tensor([t])).x_0[0])

    assert_same(drive(build_sampler("euler", start, levels), guess), expected)
