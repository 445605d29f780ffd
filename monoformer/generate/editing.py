"""Editing without training: a picture redrawn from some noise on, or only where a mask says so.

A sampler takes part without knowing: where the picture is kept, the estimate it is sent *is* the picture, so that its
x there is the picture noised to every level that it passes. Invariant: outside the mask the result equals the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from monoformer.diffusion.objectives import Estimate
from monoformer.diffusion.schedules import Level, Path
from monoformer.document import Image

SAME = 1e-6
"""Times nearer than this are one."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture to start from."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    strength: float = 1.0
    """The time from which it is redrawn: near 0 hardly anything changes, at 1 all that the mask lets change."""
    mask: Tensor | None = None
    """bool (H, W), true where the picture is drawn anew; None: everywhere."""

    def __post_init__(self) -> None:
        Image(pixels=self.pixels)  # says what is wrong with them
        check_strength(self.strength, has_mask=self.mask is not None)
        if self.mask is None:
            return
        size = tuple(self.pixels.shape[1:])
        if self.mask.dtype != torch.bool or tuple(self.mask.shape) != size:
            raise ValueError(
                f"the mask of an edit must be bool of the picture's shape {size}, but is {self.mask.dtype} of shape "
                f"{tuple(self.mask.shape)}"
            )
        if not bool(self.mask.any()):
            raise ValueError("the mask of an edit is empty, so that nothing would be drawn; mark what is to change")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def finish(self, pixels: Tensor) -> Tensor:
        """The drawn uint8 pixels (3, H, W), with the picture's own outside the mask."""
        return pixels if self.mask is None else torch.where(self.mask, pixels, self.pixels)


def check_strength(strength: float, *, has_mask: bool) -> None:
    """Refuse a strength that is none, or that leaves nothing of the picture. Raises ValueError."""
    if not 0 < strength <= 1:
        raise ValueError(f"the strength of an edit must be above 0 and at most 1, but is {strength}")
    if strength == 1 and not has_mask:
        raise ValueError("an edit of strength 1 without a mask ignores its picture; lower it, or give a mask")


def marks(mask: PILImage.Image, *, or_white: bool) -> PILImage.Image:
    """What a mask marks: 1 there, 0 elsewhere, mode F, so that resized with BOX no mark is lost (`> 0`).

    That is where it is wholly transparent, as in OpenAI's masks; with `or_white`, where nothing is, what is white.
    """
    marked = np.array(mask.convert("RGBA").getchannel("A")) == 0
    if or_white and not marked.any():
        marked = np.array(mask.convert("L")) > 127
    return PILImage.fromarray(marked.astype(np.float32))


@dataclass(frozen=True)
class Start:
    """An edit as the sampler sees it: in latents."""

    latent: Tensor
    """The picture (C, h, w), clean."""
    drawn: Tensor
    """bool (1, h, w), true for what is drawn: every cell that the mask touches."""
    strength: float

    @classmethod
    def of(cls, edit: Edit, latent: Tensor) -> "Start":
        """The edit of a picture whose clean latent (C, h, w) is given."""
        drawn = torch.ones((1, *latent.shape[1:]), dtype=torch.bool, device=latent.device)
        if edit.mask is not None:
            mask = edit.mask.to(latent.device, torch.float32)[None]
            drawn = F.adaptive_max_pool2d(mask, (latent.shape[1], latent.shape[2])) > 0
        return cls(latent, drawn, edit.strength)

    def levels(self, levels: Sequence[Level], path: Path) -> list[Level]:
        """The part of a sampling grid below the strength, which it begins at (as near as the path has levels)."""
        *grid, clean = levels
        if self.strength >= grid[0].t:
            return [*grid, clean]
        first = path.nearest(self.strength, positions=self.latent[0].numel())
        return [first, *(level for level in grid if level.t < first.t - SAME), clean]

    def noised(self, noise: Tensor, level: Level) -> Tensor:
        """Where the sampler starts: the noised picture, but pure noise where all of it is drawn anew."""
        x = level.alpha * self.latent + level.sigma * noise
        return x if self.strength < 1 else torch.where(self.drawn, noise, x)

    def keep(self, estimate: Estimate) -> Estimate:
        """The estimate with the picture itself where nothing is drawn."""
        return estimate._replace(x_0=torch.where(self.drawn, estimate.x_0, self.latent))
