"""Samplers and their grids: a Gaussian and a mixture, whose best denoisers are closed forms, are recovered."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig, SamplerName, Spacing, Variance
from monoformer.diffusion.objectives import Estimate
from monoformer.diffusion.samplers import build_sampler, drive
from monoformer.diffusion.schedules import ALPHA_MIN, CLEAN, DDPMPath, Level, build_path
from monoformer.randomness import generator

CONFIGS: dict[str, DiffusionConfig] = {
    "velocity": FlowConfig(prediction="velocity"),
    "x_0": FlowConfig(prediction="x_0"),
    "shifted": FlowConfig(shift_base=16),
    "linear": DDPMConfig(betas="linear"),
    "cosine": DDPMConfig(betas="cosine"),
    "cosine v": DDPMConfig(betas="cosine", prediction="v"),
    "short": DDPMConfig(steps=100),
}
POSITIONS = 64
"""Four times the base of the shifted path: shift 2."""

FLOW: list[SamplerName] = ["euler", "heun", "ddim", "dpm++2m"]
CHAIN: list[SamplerName] = ["ddim", "ddpm", "dpm++2m"]


def normal(*shape: int, key: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


class Mixture:
    """Normal distributions of the given weights, means and deviations."""

    def __init__(self, *parts: tuple[float, float, float]) -> None:
        self.weights, self.means, self.deviations = torch.tensor(parts, dtype=torch.float64).T

    def moments(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_0 given x_t: the best denoiser, and what it cannot know."""
        total = level.alpha**2 * self.deviations**2 + level.sigma**2
        apart = x.double()[..., None] - level.alpha * self.means
        share = torch.softmax(self.weights.log() - 0.5 * total.log() - 0.5 * apart**2 / total, dim=-1)
        means = self.means + level.alpha * self.deviations**2 / total * apart
        spread = self.deviations**2 * level.sigma**2 / total
        mean = (share * means).sum(-1)
        return mean.float(), ((share * (spread + means**2)).sum(-1) - mean**2).float()

    def distance(self, samples: Tensor) -> float:
        """Wasserstein-1 distance of samples (N,) from the mixture: the area between the distribution functions."""
        grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
        exact = (self.weights * torch.special.ndtr((grid[:, None] - self.means) / self.deviations)).sum(1)
        found = torch.searchsorted(samples.double().sort().values, grid) / len(samples)
        return float((found - exact).abs().mean() * 8)


NOISE = torch.special.ndtri((torch.randperm(4000, generator=generator(0, "noise")) + 0.5) / 4000)
"""A normal distribution's own quantiles, in any order: what a sampler starts from adds no error of chance."""

GAUSSIAN = Mixture((1.0, 0.7, 0.4))
MIXTURE = Mixture((0.3, -0.7, 0.1), (0.3, 0.1, 0.15), (0.4, 0.8, 0.08))


def best_denoiser(mixture: Mixture, levels: list[Level]) -> Callable[[Tensor, float], Estimate]:
    """E[x_0 | x_t] on a grid, and the best variance of each of its steps as a fraction between their bounds.

    The best variance is the lower bound plus what the unknown x_0 adds (Analytic-DPM, arXiv 2201.06503).
    """
    following = {level.t: (level, after) for level, after in pairwise(levels)}

    def denoise(x: Tensor, t: float) -> Estimate:
        level, after = following[t]
        mean, unknown = mixture.moments(x, level)
        if after == CLEAN:
            return Estimate(mean, torch.zeros_like(mean))
        large = level.sigma**2 - (level.alpha / after.alpha * after.sigma) ** 2
        small = large * (after.sigma / level.sigma) ** 2
        best = small + (after.alpha * large / level.sigma**2) ** 2 * unknown
        return Estimate(mean, (best / small).log() / math.log(large / small))

    return denoise


def sample(
    config: str, name: SamplerName, steps: int, *, mixture: Mixture = MIXTURE, grid: Spacing = "uniform", **options: Any
) -> Tensor:
    """What a sampler makes of NOISE with the best denoiser."""
    levels = build_path(CONFIGS[config]).levels(steps, spacing=grid, positions=POSITIONS)
    sampler = build_sampler(name, NOISE, levels, random=generator(0, "steps"), **options)
    return drive(sampler, best_denoiser(mixture, levels))


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        *(("x_0", name, {}) for name in FLOW),
        *(("shifted", name, {}) for name in FLOW),
        *((config, name, {}) for config in ("linear", "cosine", "cosine v") for name in ("ddim", "dpm++2m")),
        *((config, "ddim", {"eta": eta}) for config in ("linear", "cosine", "x_0") for eta in (0.5, 1.0)),
        *(("linear", "ddpm", {"variance": variance}) for variance in ("fixed_small", "fixed_large", "learned")),
        *(("cosine", "ddpm", {"variance": variance}) for variance in ("fixed_small", "fixed_large", "learned")),
    ],
)
def test_samplers_recover_a_mixture(config: str, name: SamplerName, options: dict[str, Any], grid: Spacing) -> None:
    """4000 samples of the mixture itself are 0.01 away, those of a normal of its moments 0.15."""
    near, far = (MIXTURE.distance(sample(config, name, steps, grid=grid, **options)) for steps in (60, 10))
    print(f"{config} {name} {options} {grid}: 60 steps {near:.4f}, 10 steps {far:.4f}")
    assert near < 0.03
    assert far < 0.3
    held_back = config in ("x_0", "shifted") and grid == "quadratic"  # by the least time and T_MIN, at any steps
    assert near < far or held_back


def test_the_distance_means_something() -> None:
    which = torch.multinomial(MIXTURE.weights, 4000, replacement=True, generator=generator(0, "which"))
    exact = MIXTURE.means[which] + MIXTURE.deviations[which] * normal(4000)
    assert MIXTURE.distance(exact) < 0.02
    assert MIXTURE.distance(exact.mean() + exact.std() * normal(4000)) > 0.1
    assert MIXTURE.distance(exact + 0.05) == pytest.approx(0.05, abs=0.02)


def test_a_learned_variance_needs_fewer_steps_than_a_fixed_one() -> None:
    variances: list[Variance] = ["learned", "fixed_small", "fixed_large"]
    for config in ("linear", "cosine"):
        learned, small, large = (MIXTURE.distance(sample(config, "ddpm", 10, variance=v)) for v in variances)
        assert learned < 0.7 * min(small, large)


def test_with_eta_1_ddim_is_ddpm() -> None:
    for config in ("linear", "cosine"):
        pair = sample(config, "ddim", 30, eta=1.0), sample(config, "ddpm", 30, variance="fixed_small")
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def error(config: str, name: SamplerName, steps: int) -> float:
    """Largest distance from where the exact flow takes the noise, in deviations of the Gaussian."""
    found = sample(config, name, steps, mixture=GAUSSIAN)
    return float((found - 0.7 - 0.4 * NOISE).abs().max()) / 0.4


@pytest.mark.parametrize(
    ("name", "config", "steps", "tolerance"),
    [
        ("euler", "velocity", 20, 0.80),
        ("heun", "velocity", 20, 0.40),
        ("dpm++2m", "velocity", 20, 0.40),
        ("ddim", "velocity", 50, 0.40),
        ("ddim", "linear", 300, 0.20),
        ("ddim", "cosine", 300, 0.20),
        ("dpm++2m", "cosine", 50, 0.20),
    ],
)
def test_deterministic_samplers_follow_the_exact_flow(
    name: SamplerName, config: str, steps: int, tolerance: float
) -> None:
    assert error(config, name, steps) < tolerance


def test_more_steps_are_better_and_the_second_order_is_better_than_the_first() -> None:
    for name in FLOW:
        errors = [error("velocity", name, steps) for steps in (3, 6, 12)]
        assert errors[0] > errors[1] > errors[2]
    assert error("velocity", "heun", 10) < 0.5 * error("velocity", "euler", 10)
    for config in ("cosine", "linear", "x_0"):
        second, first = (MIXTURE.distance(sample(config, name, 15, grid="quadratic")) for name in ("dpm++2m", "ddim"))  # type: ignore[arg-type]
        assert second < 0.6 * first


def test_on_the_straight_path_euler_is_ddim() -> None:
    pair = [sample("x_0", name, 15) for name in ("euler", "ddim")]  # type: ignore[arg-type]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
@pytest.mark.parametrize(("config", "name"), [*(("x_0", name) for name in FLOW), *(("linear", name) for name in CHAIN)])
def test_samplers_know_only_estimates(config: str, name: SamplerName, steps: int) -> None:
    """They ask at falling noise levels above 0, ignore a variance that is not theirs, and land on an estimate."""
    levels = build_path(CONFIGS[config]).levels(steps)
    target, asked = normal(2, 3, 4, key="target"), []
    for fraction in (None, torch.ones(2, 3, 4)):
        start, times = normal(2, 3, 4), []

        def denoise(x: Tensor, t: float, fraction: Tensor | None = fraction, times: list[float] = times) -> Estimate:
            assert x.shape == target.shape
            times.append(t)
            return Estimate(target, fraction)

        def new(start: Tensor = start) -> Any:
            return build_sampler(name, start, levels, random=generator(0, "steps"))

        assert torch.equal(next(new())[0], start)
        torch.testing.assert_close(drive(new(), denoise), target, rtol=0, atol=1e-6)
        asked.append(times)
    assert asked[0] == asked[1]
    assert asked[0][0] == 1
    assert all(later <= earlier for earlier, later in pairwise(asked[0]))
    assert len(asked[0]) == (2 * steps - 1 if name == "heun" else steps)


@pytest.mark.parametrize("name", CHAIN)
def test_noise_comes_from_the_generator_alone(name: SamplerName) -> None:
    def draw(seed: int) -> Tensor:
        levels = build_path(CONFIGS["linear"]).levels(10)
        eta = 0.7 if name == "ddim" else 0.0
        sampler = build_sampler(name, normal(50), levels, eta=eta, random=generator(seed, "steps"))
        return drive(sampler, best_denoiser(MIXTURE, levels))

    before = torch.random.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert torch.equal(draw(0), draw(1)) == (name == "dpm++2m")
    assert torch.equal(torch.random.get_rng_state(), before)


# --- grids ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_grids_fall_from_noise_to_clean(name: str, spacing: Any, steps: int) -> None:
    path = build_path(CONFIGS[name])
    levels = path.levels(steps, spacing=spacing, positions=POSITIONS)
    assert len(levels) == steps + 1
    if name == "cosine":
        assert ALPHA_MIN <= levels[0].alpha < 1.2 * ALPHA_MIN
    else:
        assert levels[0].t == 1
    assert levels[-1] == CLEAN
    if spacing == "quadratic" and steps > 2:
        middle = path.levels(steps, positions=POSITIONS)[steps // 2].t
        assert levels[steps // 2].t < middle or (name, steps) == ("short", 100)
    for before, after in pairwise(levels):
        assert before.t > after.t or after == CLEAN
        assert before.sigma > after.sigma
        assert before.alpha < after.alpha
    for level in levels[:-1]:
        t = torch.tensor([level.t])
        assert float(path.alpha(t)) == pytest.approx(level.alpha, abs=1e-6)
        assert float(path.sigma(t)) == pytest.approx(level.sigma, abs=1e-6)


@pytest.mark.parametrize("mean", [-0.5, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_an_estimate_of_x_0_is_asked_for_at_trained_times_alone(mean: float, spacing: Any) -> None:
    for base, positions in ((0, 0), (16, 64)):
        path = build_path(FlowConfig(time_mean=mean, shift_base=base))
        trained = path.training_times(torch.arange(1_000_000) / 1_000_000, positions=positions)
        for steps in (1, 2, 5, 40, 250):
            levels = path.levels(steps, spacing=spacing, positions=positions)
            assert levels[0].t == 1
            assert float((trained < levels[-2].t).double().mean()) >= 0.000198, "some training times lie below"
            if steps > 100:
                assert float((trained < levels[-2].t).double().mean()) < 0.00022, "and no more than must"
        for steps in (2, 5):
            plain = build_path(FlowConfig(time_mean=mean, shift_base=base, prediction="velocity"))
            velocity = plain.levels(steps, spacing=spacing, positions=positions)
            assert (velocity == path.levels(steps, spacing=spacing, positions=positions)) == (
                float((trained < velocity[-2].t).double().mean()) >= 0.0002
            ), "coarse grids and errors that t damps stay as they are"


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


def test_grids_of_a_chain_are_those_of_the_papers() -> None:
    """Evenly from 999 down, as the official code respaces; and DDIM's quadratic ones, every index once."""
    path = build_path(CONFIGS["linear"])
    for steps in (1, 2, 20, 250, 1000):
        indices = [round(999 * level.t) for level in path.levels(steps)[:-1]]
        assert indices == [round(i * 999 / max(steps - 1, 1)) for i in reversed(range(steps))] or steps == 1
        crowded = [round(999 * level.t) for level in path.levels(steps, spacing="quadratic")[:-1]]
        assert len(set(crowded)) == steps
        assert crowded[0] == indices[0] == 999
        assert crowded[-1] == indices[-1] or steps == 1
    assert [round(999 * level.t) for level in path.levels(5, spacing="quadratic")[:-1]] == [999, 562, 250, 62, 0]


def test_so_many_steps_as_need_them_take_all_levels_of_a_cosine_chain() -> None:
    path = build_path(CONFIGS["cosine"])
    assert [round(999 * level.t) for level in path.levels(1000)[:-1]] == list(range(999, -1, -1))
    assert round(999 * path.levels(995)[0].t) == 994
    assert round(999 * path.levels(500)[0].t) == 989


def test_a_small_error_of_eps_stays_small_on_a_cosine_chain() -> None:
    """One hundredth in eps; from the chain's last level, where alpha is 0.00005, it would be everything."""
    path = build_path(CONFIGS["cosine"])
    levels = path.levels(25)
    end = torch.ones(1)
    last = Level(1.0, float(path.alpha(end)), float(path.sigma(end)))

    def distance(levels: list[Level]) -> float:
        exact, at = best_denoiser(MIXTURE, levels), {level.t: level for level in levels}

        def denoise(x: Tensor, t: float) -> Estimate:
            return Estimate(exact(x, t).x_0 - 0.01 * torch.tanh(3 * x + 5 * t) * at[t].sigma / at[t].alpha)

        return MIXTURE.distance(drive(build_sampler("ddim", NOISE, levels), denoise))

    assert distance(levels) < 0.1
    assert distance([last, *levels[1:]]) > 1


@pytest.mark.parametrize("positions", [4, 16, 64, 1024])
def test_larger_images_are_shifted_toward_noise(positions: int) -> None:
    """SD3, equation 23, in training and in sampling: t' = s t / (1 + (s - 1) t), s = sqrt(m / n)."""
    plain, shifted = build_path(FlowConfig()), build_path(CONFIGS["shifted"])
    s = math.sqrt(positions / 16)
    uniform = torch.rand(200, generator=generator(0, "uniform"), dtype=torch.float64)
    t = plain.training_times(uniform, positions=positions)
    torch.testing.assert_close(shifted.training_times(uniform, positions=positions), s * t / (1 + (s - 1) * t))
    for before, after in zip(plain.levels(9), shifted.levels(9, positions=positions), strict=True):
        assert after.t == pytest.approx(s * before.t / (1 + (s - 1) * before.t))


@pytest.mark.parametrize("positions", range(1, 2000, 7))
def test_the_first_step_is_at_pure_noise_whatever_the_size(positions: int) -> None:
    """Not a bit beyond it, where guidance's interval ends and the picture's share would be negative."""
    for base in (32, 1000):
        first, *_ = build_path(FlowConfig(shift_base=base)).levels(2, positions=positions)
        assert (first.t, first.sigma) == pytest.approx((1.0, 1.0))
        assert first.t <= 1
        assert first.alpha >= 0


@pytest.mark.parametrize("base", [16, 64, 256, 1024])
def test_times_of_images_of_any_size_are_numbers(base: int) -> None:
    path, uniform = build_path(FlowConfig(shift_base=base)), torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    broken = [
        (height, width)
        for height in range(4, 80)
        for width in range(height, 80)
        if not path.training_times(uniform, positions=height * width).isfinite().all()
    ]
    assert not broken, "the last bit of the shift of t = 1 must not take it beyond"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("maximum", [0.5, 0.2, 0.01])
def test_training_times_up_to_a_maximum_are_the_others_cut_off(name: str, maximum: float) -> None:
    path = build_path(CONFIGS[name])
    uniform = torch.rand(20_000, generator=generator(0, "uniform"), dtype=torch.float64)
    every = path.training_times(uniform, positions=POSITIONS)
    cut = path.training_times(uniform, positions=POSITIONS, maximum=maximum)
    assert float(cut.max()) <= maximum
    expected = every[every <= maximum]
    if len(expected) > 50:
        quantiles = torch.tensor([0.1, 0.5, 0.9])
        torch.testing.assert_close(cut.quantile(quantiles), expected.quantile(quantiles), rtol=0, atol=0.02)
    both = path.training_times(uniform[:2], positions=POSITIONS, maximum=torch.tensor([1.0, maximum]))
    assert torch.equal(both, torch.stack([every[0], cut[1]])), "each image may have its own"


def test_half_of_a_chain_is_its_first_500_levels() -> None:
    path = build_path(CONFIGS["linear"])
    uniform = torch.linspace(0, 1 - 1e-9, 5000, dtype=torch.float64)
    seen = path.network_time(path.training_times(uniform, maximum=0.5)).long()
    assert torch.equal(torch.bincount(seen), torch.full((500,), 10))


@pytest.mark.parametrize("name", CONFIGS)
def test_training_times_are_in_range_and_the_network_sees_large_numbers(name: str) -> None:
    path = build_path(CONFIGS[name])
    uniform = torch.rand(4000, generator=generator(0, "uniform"), dtype=torch.float64)
    times = path.training_times(torch.cat([uniform, torch.tensor([0.0, 1 - 2**-53])]), positions=16)
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
