"""Settings of writing and drawing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Defaults of a model folder; every call may replace them."""

    sampler: Literal["euler", "heun", "ddim"] = "euler"
    """How the noise is taken away (euler and heun for flow models, ddim for DDPM)."""
    steps: int = 25
    """Denoising steps of a picture."""
    guidance: float = 2.5
    """Classifier-free guidance; 1 means none (and costs no second pass)."""
    max_tokens: int = 256
    """Most text tokens written in one turn."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 among all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability."""
    stop: tuple[str, ...] = ()
    """Strings that end the writing; they are not part of the answer."""
    seed: int = 0
    """Seed of the first item; item i of a list uses seed + i."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"generate.steps must be at least 1, but is {self.steps}")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("generate.temperature and top_k must be 0 or more, and top_p in (0, 1]")
        if self.max_tokens < 0:
            raise ValueError(f"generate.max_tokens must be 0 or more, but is {self.max_tokens}")
