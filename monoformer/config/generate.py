"""Settings of writing and drawing, and which sampler goes with which path."""

import typing
from dataclasses import dataclass

from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, SamplerName, Spacing


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Defaults of a model folder; every call may replace them."""

    sampler: SamplerName = "euler"
    """How the noise is taken away: euler and heun for flow models, ddpm for DDPM, ddim and dpm++2m for both."""
    steps: int = 25
    """Denoising steps of a picture."""
    spacing: Spacing = "uniform"
    """Where the steps lie in time: evenly, or quadratically with more of them near the clean picture."""
    eta: float = 0.0
    """Noise that ddim adds in every step: 0 none, 1 as much as ddpm with fixed_small variance."""
    guidance: float = 2.5
    """Classifier-free guidance; 1 means none (and costs no second pass)."""
    guided_channels: int = 0
    """Channels of the latent that guidance strengthens, the first ones; 0: all. The official MonoFormer code guides 3
    of 4, which is here to compare with it."""
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
        for name, kind in (("sampler", SamplerName), ("spacing", Spacing)):  # calls may pass any word
            if getattr(self, name) not in typing.get_args(kind):
                known = ", ".join(typing.get_args(kind))
                raise ValueError(f"generate.{name} must be one of {known}, but is {getattr(self, name)!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"generate.eta must be in [0, 1], but is {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"generate.eta = {self.eta} has no effect on {self.sampler}; use sampler ddim, or eta 0")
        if self.guided_channels < 0 or (self.guided_channels and self.guidance == 1):
            raise ValueError(
                f"generate.guided_channels must be 0 or more, and has no effect without guidance; it is "
                f"{self.guided_channels} with guidance {self.guidance}"
            )
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("generate.temperature and top_k must be 0 or more, and top_p in (0, 1]")
        if self.max_tokens < 0:
            raise ValueError(f"generate.max_tokens must be 0 or more, but is {self.max_tokens}")


def check_sampler(generate: GenerateConfig, diffusion: DiffusionConfig) -> None:
    """Refuse a sampler that does not fit how the model was trained."""
    chain = isinstance(diffusion, DDPMConfig)
    if chain and generate.sampler in ("euler", "heun"):
        raise ValueError(f"sampler {generate.sampler!r} needs flow diffusion; with DDPM use ddim, ddpm or dpm++2m")
    if not chain and generate.sampler == "ddpm":
        raise ValueError("sampler 'ddpm' needs DDPM diffusion; with flow use euler, heun, ddim or dpm++2m")
    if isinstance(diffusion, DDPMConfig) and generate.steps > diffusion.steps:
        raise ValueError(
            f"generate.steps = {generate.steps}, but a DDPM chain of {diffusion.steps} levels cannot be sampled in "
            f"more; lower it"
        )
