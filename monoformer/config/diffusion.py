"""How images are noised, what the network predicts, and how the loss weighs it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from monoformer.config.bounds import check_numbers

SamplerName: TypeAlias = Literal["euler", "heun", "ddim", "ddpm", "dpm++2m"]
"""Ways to take the noise away; `monoformer.config.generate.check_sampler` says which goes with which path."""

Spacing: TypeAlias = Literal["uniform", "quadratic"]
"""Where a sampler's steps lie in time; quadratic puts more of them near the clean image (DDIM, appendix D.2)."""

Variance: TypeAlias = Literal["fixed_small", "fixed_large", "learned"]
"""Variance of one step back along the chain: its lower bound, its upper bound, or what the network says between."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Straight path x_t = (1 - t) x_0 + t noise (flow matching, arXiv 2210.02747)."""

    prediction: Literal["velocity", "x_0"] = "x_0"
    """What the image head returns. Large pixel patches need x_0 (JiT, arXiv 2511.13720)."""
    time_mean: float = 0.4
    """Mean of the logit-normal training times; above 0 leans toward noise."""
    time_deviation: float = 1.0
    """Standard deviation of the logit-normal training times."""
    clamp_time: float = 0.05
    """Least time in the weight 1 / t^2 that turns an error in x_0 into one in velocity (JiT: 0.05). Higher: rare times
    near the clean image, whose weight is largest, disturb the others less."""
    shift_base: int = 0
    """Latent height times width at which times are not shifted; larger images are trained and drawn at times nearer
    noise, smaller ones at times nearer the clean image (SD3, equation 23). 0: never shifted."""

    def __post_init__(self) -> None:
        check_numbers(self, "time_mean", room="diffusion")
        check_numbers(self, "time_deviation", room="diffusion", above=0)
        check_numbers(self, "clamp_time", room="diffusion", above=0, most=1)
        check_numbers(self, "shift_base", room="diffusion", least=0)
        if self.prediction != "x_0" and self.clamp_time != FlowConfig.clamp_time:
            raise ValueError("diffusion.clamp_time weighs errors in x_0; it does nothing when velocity is predicted")


@dataclass(frozen=True, kw_only=True)
class DDPMConfig:
    """The discrete Markov chain of DDPM (arXiv 2006.11239), as both papers use it."""

    steps: int = 1000
    """Number of noise levels."""
    betas: Literal["linear", "cosine"] = "linear"
    """Noise schedule: linear betas 1e-4 to 2e-2 (MonoFormer) or cosine (Transfusion)."""
    prediction: Literal["eps", "v", "x_0"] = "eps"
    """What the image head returns: the noise, v = alpha noise - sigma x_0 (arXiv 2202.00512), or the clean image."""
    variance: Variance = "fixed_small"
    """Variance of the steps of the sampler ddpm. `learned` adds its variational bound to the loss and needs
    `model.learned_variance` (improved DDPM, arXiv 2102.09672)."""

    def __post_init__(self) -> None:
        check_numbers(self, "steps", room="diffusion", least=2)
        if self.betas == "linear" and self.steps <= 20:  # 2e-2 * 1000 / steps is the last beta; at 1 nothing is left
            raise ValueError(f"diffusion.steps must be above 20 with linear betas, but is {self.steps}")


DiffusionConfig: TypeAlias = FlowConfig | DDPMConfig


def check_variance(diffusion: DiffusionConfig, *, learned: bool) -> None:
    """Refuse an image head that returns a variance (`learned`) which is not trained, or lacks one that is."""
    trained = isinstance(diffusion, DDPMConfig) and diffusion.variance == "learned"
    if trained and not learned:
        raise ValueError("diffusion.variance = learned needs an image head that returns it; set model.learned_variance")
    if learned and not trained:
        raise ValueError("model.learned_variance needs diffusion.variance = learned (DDPM); set that, or leave it out")
