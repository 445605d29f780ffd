"""A picture on its way: a sampler, the contexts that it is drawn behind, and what it starts from.

Knows nothing of text. Invariant: guidance is never inside a sampler; a context is only asked where it has a weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder
from monoformer.config.generate import GenerateConfig
from monoformer.diffusion.objectives import Estimate, Objective
from monoformer.diffusion.samplers import Sampler, build_sampler
from monoformer.document import Image
from monoformer.generate.editing import Edit, Start
from monoformer.generate.guidance import mix
from monoformer.generate.passes import Context


@dataclass(frozen=True)
class Preview:
    """What the picture would be by the estimate of one step; costs nothing until it is looked at."""

    latent: Tensor
    """x_0 (C, h, w)."""
    autoencoder: Autoencoder
    edit: Edit | None = None

    def image(self) -> Image:
        """The picture, decoded now."""
        pixels = self.autoencoder.decode(self.latent[None])[0].cpu()
        return Image(pixels=pixels if self.edit is None else self.edit.finish(pixels), target=True)


@dataclass
class Drawing:
    """One picture being denoised."""

    contexts: list[Context]
    """Conditional, and those that guidance compares with."""
    sampler: Sampler
    settings: GenerateConfig
    grid: tuple[int, int]
    evaluations: int
    """Network evaluations in all."""
    x: Tensor
    """Latent (C, h, w) that the sampler wants denoised."""
    t: float
    begins: Start | None = None
    """The picture that it starts from, if it does."""
    done: int = 0
    estimate: Tensor | None = None
    """The last estimate of the clean latent."""

    @classmethod
    def start(
        cls,
        contexts: list[Context],
        noise: Tensor,
        objective: Objective,
        settings: GenerateConfig,
        grid: tuple[int, int],
        random: torch.Generator,
        *,
        begins: Start | None = None,
    ) -> "Drawing":
        """Begin from noise (C, h, w); what the sampler adds comes from `random`, the picture's own generator."""
        levels = objective.path.levels(settings.steps, spacing=settings.spacing, positions=noise[0].numel())
        if begins is not None:
            levels = begins.levels(levels, objective.path)
            noise = begins.noised(noise, levels[0])
        sampler = build_sampler(
            settings.sampler, noise, levels, eta=settings.eta, variance=objective.variance, random=random
        )
        x, t = next(sampler)
        steps = len(levels) - 1
        evaluations = 2 * steps - 1 if settings.sampler == "heun" else steps
        return cls(contexts, sampler, settings, grid, evaluations, x, t, begins)

    def asked(self) -> list[Context]:
        """The contexts behind which the network is asked at this time: outside the guidance interval only one."""
        low, high = self.settings.guidance_interval
        return self.contexts if low <= self.t <= high else self.contexts[:1]

    def advance(self, estimates: Sequence[Estimate]) -> Tensor | None:
        """Give the sampler what each context in `asked` estimated; the clean latent when it is done."""
        estimate = mix(list(estimates), self.settings)
        if self.begins is not None:
            estimate = self.begins.keep(estimate)
        self.estimate = estimate.x_0
        self.done += 1
        try:
            self.x, self.t = self.sampler.send(estimate)
        except StopIteration as stop:
            latent: Tensor = stop.value
            return latent
        return None
