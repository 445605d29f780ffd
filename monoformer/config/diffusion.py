"""How images are noised, what the network predicts, and how the loss weighs it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Straight path x_t = (1 - t) x_0 + t noise (flow matching, arXiv 2210.02747)."""

    prediction: Literal["velocity", "x_0"] = "x_0"
    """What the image head returns. Large pixel patches need x_0 (JiT, arXiv 2511.13720)."""
    time_mean: float = 0.4
    """Mean of the logit-normal training times; above 0 leans toward noise."""
    time_deviation: float = 1.0
    """Standard deviation of the logit-normal training times."""

    def __post_init__(self) -> None:
        if self.time_deviation <= 0:
            raise ValueError(f"diffusion.time_deviation must be above 0, but is {self.time_deviation}")


@dataclass(frozen=True, kw_only=True)
class DDPMConfig:
    """The discrete Markov chain of DDPM (arXiv 2006.11239), as both papers use it."""

    steps: int = 1000
    """Number of noise levels."""
    betas: Literal["linear", "cosine"] = "linear"
    """Noise schedule: linear betas 1e-4 to 2e-2 (MonoFormer) or cosine (Transfusion)."""
    prediction: Literal["eps"] = "eps"
    """What the image head returns."""

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"diffusion.steps must be at least 2, but is {self.steps}")
        if self.betas == "linear" and self.steps <= 20:  # 2e-2 * 1000 / steps is the last beta; at 1 nothing is left
            raise ValueError(f"diffusion.steps must be above 20 with linear betas, but is {self.steps}")


DiffusionConfig: TypeAlias = FlowConfig | DDPMConfig
