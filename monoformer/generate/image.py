"""A picture on its way: a sampler, the contexts that it is drawn behind, and guidance between them.

Knows nothing of text. Invariant: guidance is here, never inside a sampler; scale 1 costs no second context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.diffusion.objectives import Estimate, Objective
from monoformer.diffusion.samplers import Sampler, build_sampler
from monoformer.document import Document
from monoformer.generate.passes import Context
from monoformer.sequence import unconditional


def guide(conditional: Estimate, unconditioned: Estimate, scale: float, *, channels: int = 0) -> Estimate:
    """Classifier-free guidance on x_0 (..., C, h, w); the rest is the conditional branch's (arXiv 2207.12598).

    The rest is the variance fraction, and where `channels` is not 0 all but so many channels. At one x_t, mixing x_0,
    eps or v is the same.
    """
    x_0 = unconditioned.x_0 + scale * (conditional.x_0 - unconditioned.x_0)
    if channels:
        x_0 = torch.cat([x_0[..., :channels, :, :], conditional.x_0[..., channels:, :, :]], dim=-3)
    return Estimate(x_0, conditional.variance_fraction)


def check_channels(settings: GenerateConfig, model: ModelConfig) -> None:
    """Refuse to guide more channels than the model's latents have."""
    if settings.guided_channels > model.channels:
        raise ValueError(
            f"generate.guided_channels = {settings.guided_channels}, but the model draws {model.channels} channels; "
            f"0 guides all"
        )


def null_document(document: Document) -> Document:
    """What guidance compares with: the document without its text; its images stay, as an edit must know them.

    Built by the function that drops for training, so that both null contexts are the same.
    """
    keep: Literal["nothing", "images"] = "images" if document.images else "nothing"
    return unconditional(document, len(document.segments), keep=keep)


@dataclass
class Drawing:
    """One picture being denoised."""

    contexts: list[Context]
    """Conditional, and unconditional where guidance is above 1."""
    sampler: Sampler
    settings: GenerateConfig
    grid: tuple[int, int]
    evaluations: int
    """Network evaluations in all."""
    x: Tensor
    """Latent (C, h, w) that the sampler wants denoised."""
    t: float
    done: int = 0

    @classmethod
    def start(
        cls,
        contexts: list[Context],
        noise: Tensor,
        objective: Objective,
        settings: GenerateConfig,
        grid: tuple[int, int],
        random: torch.Generator,
    ) -> "Drawing":
        """Begin from noise (C, h, w); what the sampler adds comes from `random`, the picture's own generator."""
        steps = settings.steps
        levels = objective.path.levels(steps, spacing=settings.spacing, positions=noise[0].numel())
        sampler = build_sampler(
            settings.sampler, noise, levels, eta=settings.eta, variance=objective.variance, random=random
        )
        x, t = next(sampler)
        evaluations = 2 * steps - 1 if settings.sampler == "heun" else steps
        return cls(contexts, sampler, settings, grid, evaluations, x, t)

    def advance(self, estimates: Sequence[Estimate]) -> Tensor | None:
        """Give the sampler what each context estimated; the clean latent when it is done."""
        estimate, settings = estimates[0], self.settings
        if len(estimates) > 1:
            estimate = guide(estimate, estimates[1], settings.guidance, channels=settings.guided_channels)
        self.done += 1
        try:
            self.x, self.t = self.sampler.send(estimate)
        except StopIteration as stop:
            latent: Tensor = stop.value
            return latent
        return None
